"""How much of the logits to hold at once."""

DENSE_BYTES = 32 * 2**20     # float32 logits per device up to which the dense form is used: it computes them once
CHUNK_BYTES = 64 * 2**20     # float32 logits per device of one stretch
KEEP_BYTES = 2**30           # softmaxes per device kept for the backward pass, which spares it that share of the products
MIN_TOKENS = 256             # per stretch: below, adding to dw (V, D) costs more than the products


def chunk_length(B: int, T: int, V: int, devices: int = 1) -> int:
  """Positions of a stretch: as many as CHUNK_BYTES hold, at least MIN_TOKENS / B, stretches of equal length."""
  tokens = max(CHUNK_BYTES * devices // (4 * V), MIN_TOKENS)
  stretches = -(-T // max(1, tokens // B))
  return -(-T // stretches)


def num_kept(rows: int, chunk: int, V: int, itemsize: int, num_chunks: int, keep_bytes: int) -> int:
  """How many of a device's stretches of (rows, chunk, V) fit into keep_bytes."""
  return min(num_chunks, keep_bytes // (rows * chunk * V * itemsize))
