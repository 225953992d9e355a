"""A family of models each: the builder, the recipe, the rows, and the settings of the small profile."""
