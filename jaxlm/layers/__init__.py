"""Parameterised building blocks (Flax Linen)."""
