"""The table of models: recipes, published facts, weights."""
