"""Weights that all students of a space share, and students that start from slices of them."""
