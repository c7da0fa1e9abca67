"""Chunk lengths.

Work per token grows with the chunk (the triangle), carried state with its inverse.
"""


def chunk_length(platform: str, head_dim: int, state_dim: int) -> int:
  """Tokens per chunk of the XLA form.

  CPU: measured by `bench/ssd.py` (bench/RESULTS.md): 32 and 64 are within a tenth of each other
  with H 64 and E 64 or 128, and the shorter one sums fewer logarithms of decays, hence rounds less.
  Elsewhere 256, the chunk of the released configurations: a square that fills a matrix unit.
  """
  del head_dim, state_dim
  return 32 if platform == "cpu" else 256
