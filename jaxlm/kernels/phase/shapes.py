"""Shapes of rotated queries and keys in the papers' configurations: (B, T, N, K, H)."""

CAROPE_SMALL = (32, 512, 12, 12, 64)  # docs/specs/carope.md section 6, one device's micro-batch
CAROPE_REDUCED = (128, 128, 4, 4, 64)  # section 9
CPU = ((16, 64, 4, 4, 64), (16, 128, 8, 8, 64), (8, 512, 8, 8, 64))
LONG_ROWS = (2, 8192, 12, 12, 64)  # CAROPE_SMALL's model on long rows
