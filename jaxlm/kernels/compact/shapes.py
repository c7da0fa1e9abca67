"""Shapes of H-Net's chunks in the paper's configurations, one device's rows: (B, T, C capacity, D)."""

HNET_1STAGE = (1, 8192, 3072, 1024)  # configs/hnet/paper.py, one row of 8,192 bytes per chip
HNET_2STAGE = (1, 3072, 1024, 1536)  # the second stage of its two-stage models
