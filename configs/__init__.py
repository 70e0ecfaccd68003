"""Recipes: data and no logic; each overrides `base`."""
