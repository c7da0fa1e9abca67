"""Decoding for each family of models."""
