"""Shapes (L, M, N) of the matrices of one update in the papers' configurations: 3 matrices of 4 heads,
or of one.
"""

PAPER = {
  "lact_760m": (12, 384, 384),
  "lact_3b": (12, 768, 768),
  "view synthesis": (3, 768, 1536),
}
