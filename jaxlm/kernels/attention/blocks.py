"""Block sizes of attention: a table by device kind, then a heuristic; nothing is searched at run time."""

STRETCHES = 8                 # causal attention computes (1 + 1/STRETCHES) times the needed scores
DENSE_SCORES = 256 * 256      # up to so many scores per head the dense reference is the faster one
SCORE_BYTES = 64 * 2**20      # what the float32 scores of one query block should not exceed


def query_block(rows: int, T: int, S: int) -> int:
  """Queries per block for `rows` = batch * heads: a power of two in 16 .. 256, scores within SCORE_BYTES."""
  block = 256
  while block > 16 and rows * block * S * 4 > SCORE_BYTES:
    block //= 2
  return min(block, T)


def splash_block(T: int) -> int:
  """Queries and keys per splash block: the largest of 512, 256, 128 that divides T."""
  return next(block for block in (512, 256, 128) if T % block == 0)
