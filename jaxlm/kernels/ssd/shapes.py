"""Argument shapes (B, T, N heads, H head_dim, K groups, E state) of tests, benchmarks and the
paper's configs.
"""

SMALL = [(2, 27, 4, 6, 2, 5), (1, 1, 1, 4, 1, 3), (2, 2, 2, 8, 1, 4), (1, 65, 3, 8, 3, 4)]
BENCH = [(1, 2048, 4, 64, 1, 128)]
PAPER = {
  "hnet_1stage_L encoder": (256, 8192, 32, 64, 1, 128),
  "hnet_2stage_XL stage 1 encoder": (256, 6144, 48, 64, 1, 128),
}
