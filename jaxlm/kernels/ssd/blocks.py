"""Chunk lengths. Work per token grows with the chunk (the triangle), carried state with its inverse."""


def chunk_length(platform: str, head_dim: int, state_dim: int) -> int:
  """Tokens per chunk of the XLA form.

  CPU: measured by `bench/ssd.py`, length 2048, H 64, E 128: 64 is the fastest of 32, 64, 128, 256 forward and
  backward. Elsewhere 256, the chunk of the released configurations: a square that fills a matrix unit.
  """
  del head_dim, state_dim
  return 64 if platform == "cpu" else 256
