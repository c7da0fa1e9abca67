"""Runs and weights folders: what they hold, how it is checked, and the one way to read it."""
