"""Shapes of the routers in the paper's configurations, one device's rows: (B, T, D)."""

HNET_1STAGE_L = (1, 8192, 1024)  # configs/hnet/paper.py, one row of 8,192 bytes per chip
HNET_2STAGE_XL_OUTER = (1, 8192, 1024)
HNET_2STAGE_XL_INNER = (1, 3072, 1536)  # its second router, over the outer stage's chunks
