"""Shapes of self-attention in the papers' configurations: (B, T, N, K, H)."""

CAROPE_SMALL = (32, 512, 12, 12, 64)  # docs/specs/carope.md section 6, one device's micro-batch
CAROPE_REDUCED = (128, 128, 4, 4, 64)  # section 9
LONG = tuple((1, T, 4, 4, 64) for T in (1024, 2048, 4096, 8192))
MRT5_SMALL = (4, 1024, 6, 6, 64)  # spec mrt5 section 9: ByT5-small, some of a device's rows
LEXINVARIANT = (
  8,
  512,
  8,
  8,
  128,
)  # configs/lexinvariant/paper_chars.py, some of its rows: T5 positions
