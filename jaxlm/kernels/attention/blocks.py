"""Block sizes of attention: by platform, then a heuristic; nothing is searched at run time.

CPU, jax 0.10.2, two shared cores of an AMD EPYC, 2026-11: ms of CPU time for forward and backward,
float32, head size 64, 4 heads (bench/attention.py):

  batch x length   dense   blocks of 32   64    128
      16 x 64        5.8        6.1       5.4     -
       8 x 128       9.4        7.1       7.0    9.6
       8 x 256      51         42        28     27
       4 x 512     111         49        66     68
       1 x 1024    134         55        47     48
"""

from jaxlm.kernels.attention.bias import BucketBias
from jaxlm.kernels.platform import target_platform

NUM_QUERY_RANGES = 8  # causal attention computes (1 + 1 / NUM_QUERY_RANGES) times the needed scores
DENSE_SCORES = 100 * 100  # scores per head up to which the dense form is as fast
CPU_QUERIES = 64
SCORE_BYTES = 256 * 2**20  # elsewhere: what the float32 scores of one query block should not exceed


def query_block(rows: int, T: int, S: int) -> int:
  """Queries per block for `rows` = batch * heads; elsewhere than on a CPU a power of two in 16 ..

  256.
  """
  if target_platform() == "cpu":
    return min(CPU_QUERIES, T)
  block = 256
  while block > 16 and rows * block * S * 4 > SCORE_BYTES:
    block //= 2
  return min(block, T)


def splash_block(T: int) -> int:
  """Queries and keys per splash block: the largest of 512, 256, 128 that divides T."""
  return next(block for block in (512, 256, 128) if T % block == 0)


PALLAS_FROM = 512  # queries and keys from which the Pallas kernel is chosen for biases by buckets
SHORT = (256, 512)  # queries and keys, from and up to, for which it is chosen without biases


def pallas_blocks(T: int, S: int, positional: bool) -> tuple[tuple[int, int], tuple[int, int]]:
  """((queries, keys) per tile forward, the same backward): powers of two, at least 128.

  positional: causal or with a window, where smaller tiles leave more of the hidden pairs out. A
  grid step costs some 1,000 cycles beside its products, so few queries take more keys at a time.
  """

  def fit(length, most):
    return max(128, min(most, 1 << max(length - 1, 0).bit_length()))

  queries = fit(T, 512 if positional else 1024)
  # The strip of a bias of distance has a row per key of a tile and is as long as the sequence.
  long = max(T, S) > 4096
  forward = fit(S, min(1024, max(512, 512 * 512 // queries)))
  backward = fit(
    S, min(256 if long else 1024, (512 * 512 if positional else 1024 * 256) // queries)
  )
  return (queries, min(forward, 512) if long else forward), (queries, backward)


def pallas_pays(T: int, S: int, biases: tuple) -> bool:
  """Whether the compiler's estimate of the other form is at least 1.3 times that of the Pallas
  kernel, both directions.

  The figures are in kernels/README.md. XLA skews a table of buckets in every block; it fuses
  arithmetic on positions or numbers per token into its softmax, where the kernel gains nothing.
  Without biases the other form is splash, which writes the rows' log-sums 128 times over: at one
  block of keys that takes longer than its products. Longer rows were not compared: the profile of
  splash aborts.
  """
  if not biases:
    return SHORT[0] <= min(T, S) and max(T, S) <= SHORT[1]
  return min(T, S) >= PALLAS_FROM and any(isinstance(bias, BucketBias) for bias in biases)
