"""A family of models each: the builder, the recipe, the rows, and the settings of the small profile.

The docstring of a family's file begins with its title, as the book shows it.
"""
