"""Argument shapes (B, T, N heads, H key width, E value width) of the papers' configs."""

PAPER = {"lact_760m delta_rule": (32, 32_768, 12, 128, 128)}  # configs/lact/lm_760m.py
