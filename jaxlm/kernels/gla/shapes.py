"""Argument shapes (B, T, N heads, H key width, E value width) of the papers' configs."""

PAPER = {"lact_760m gla": (32, 32_768, 4, 384, 384)}  # configs/lact/lm_760m.py
