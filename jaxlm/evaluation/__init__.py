"""Perplexity and bits per byte by position and length, task scores, throughput, FLOPs."""
