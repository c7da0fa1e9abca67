"""Ahead-of-time compilation for a pod that is not there."""
