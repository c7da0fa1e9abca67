"""Shapes (B, N, H head width, F inner width, C tokens of a chunk) in the papers' configurations
(docs/specs/lact.md, sections 4 and 8).
"""

PAPER = {
  "lact_760m": (1, 4, 384, 384, 2048),
  "lact_3b": (1, 4, 768, 768, 4096),
  "view synthesis": (8, 1, 768, 1536, 8192),  # 8 of 16 views of 32 x 32 patches teach
}
