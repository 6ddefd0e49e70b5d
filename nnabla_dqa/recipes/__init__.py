"""Recipes: everything that a training needs to be told."""
