"""Recipes: what is trained, on what data and how."""
