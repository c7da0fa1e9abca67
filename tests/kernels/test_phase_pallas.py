"""The TPU kernels of carope_rotate, interpreted, against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.phase import blocks, carope_rotate, cumulative_phase, shapes

# Two steps of 128 tokens in a block, so that T = 257 has a second block.
TOKENS = 256
PACKED = [[1] * 37 + [2] * 95 + [3] * 10 + [0] * 8, [0] * 2 + [1] * 126 + [2] * 22]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setitem(blocks.TOKENS, "", TOKENS)


def inputs(B, T, N, K, H, dtype=jnp.float32, masked=False):
  rng = np.random.default_rng(0)
  arrays = dict(
    q=jnp.asarray(rng.standard_normal((B, T, N, H)), dtype),
    k=jnp.asarray(rng.standard_normal((B, T, K, H)), dtype),
    log_f=jnp.asarray(-rng.uniform(0.02, 1.5, (B, T, K)), jnp.float32),
    initial=jnp.asarray(rng.uniform(-3, 3, (B, K, H // 2)), jnp.float32),
    dq=jnp.asarray(rng.standard_normal((B, T, N, H)), dtype),
    dk=jnp.asarray(rng.standard_normal((B, T, K, H)), dtype),
    dfinal=jnp.asarray(rng.standard_normal((B, K, H // 2)), jnp.float32),
  )
  return arrays, jnp.asarray(rng.random((B, T)) < 0.7) if masked else None


def definition(a, mask, segments, start, inclusive):
  """[q, k, final, dq, dk, dlog_f, dinitial] in float64; gradients by the chain rule, token by token."""
  a = {name: np.asarray(x, np.float64) for name, x in a.items()}
  (B, T, _, H), K = a["q"].shape, a["k"].shape[2]
  P = H // 2
  ladder = start + np.arange(P)
  step = np.exp(a["log_f"][..., None] * ladder) * (
    1 if mask is None else np.asarray(mask)[:, :, None, None]
  )
  phase, final = np.zeros((B, T, K, P)), a["initial"].copy()
  last = np.zeros(B, int)
  begins = np.zeros((B, T), bool)
  for t in range(T):
    if segments is not None:
      begins[:, t] = (segments[:, t] > last) & (last > 0)
      last = np.maximum(last, segments[:, t])
      final[begins[:, t]] = 0
    before, final = final, final + step[:, t]
    phase[:, t] = final if inclusive else before

  def turn(x, cos, sin):
    x1, x2 = x[..., :P], x[..., P:]
    cos, sin = (np.repeat(v, x.shape[2] // K, axis=2) for v in (cos, sin))
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

  cos, sin = np.cos(phase), np.sin(phase)
  q, k = turn(a["q"], cos, sin), turn(a["k"], cos, sin)

  def cross(dy, y):
    g = dy[..., P:] * y[..., :P] - dy[..., :P] * y[..., P:]
    return g.reshape(B, T, K, -1, P).sum(3)

  g, R = cross(a["dq"], q) + cross(a["dk"], k), np.zeros((B, T, K, P))
  behind = a["dfinal"].copy()
  for t in reversed(range(T)):
    R[:, t] = behind + (g[:, t] if inclusive else 0)
    behind = behind + g[:, t]
    behind[begins[:, t]] = 0
  return [
    q, k, final, turn(a["dq"], cos, -sin), turn(a["dk"], cos, -sin), (ladder * step * R).sum(-1), behind,
  ]  # fmt: skip


def by_kernel(a, mask, segments, start, inclusive, **options):
  def turned(q, k, log_f, initial):
    return carope_rotate(
      q,
      k,
      log_f,
      rotary_dim=q.shape[-1],
      ladder_start=start,
      inclusive=inclusive,
      increments_mask_BT=mask,
      segment_ids_BT=segments,
      initial_BKP=initial,
      implementation="pallas",
      **options,
    )

  @jax.jit
  def run(a):
    out, pull = jax.vjp(turned, a["q"], a["k"], a["log_f"], a["initial"])
    return [*out, *pull((a["dq"], a["dk"], a["dfinal"]))]

  return run(a)


NAMES = ("q", "k", "final", "dq", "dk", "dlog_f", "dinitial")


def check(got, want, tolerance, names=NAMES):
  for name, g, w in zip(NAMES, got, want, strict=True):
    if name not in names:
      continue
    error = np.asarray(g, np.float64) - w
    if name == "final":  # an angle
      error -= 2 * np.pi * np.round(error / (2 * np.pi))
    assert np.abs(error).max() <= tolerance * max(1.0, np.abs(w).max()), name


# Sums within a step reach 128, where float32 rounds by 4e-6; the errors of 128 such additions are
# independent, hence about 4e-6 sqrt(128) = 5e-5 for a phase, and for what is turned by it.
FLOAT32 = 1e-4


@pytest.mark.parametrize(
  "T, heads, packed, masked, inclusive, start",
  [
    (1, (4, 4, 64), False, False, True, 0),
    (257, (6, 6, 64), False, True, False, 1),  # two groups of three heads
    pytest.param(150, (4, 4, 64), True, True, True, 0, marks=pytest.mark.slow),
    pytest.param(150, (4, 4, 64), True, False, False, 1, marks=pytest.mark.slow),
    pytest.param(129, (8, 8, 32), False, False, False, 1, marks=pytest.mark.slow),
    pytest.param(127, (4, 2, 128), False, False, True, 1, marks=pytest.mark.slow),
    pytest.param(5, (4, 2, 256), False, False, True, 0, marks=pytest.mark.slow),
  ],
)
def test_the_kernels_are_the_definition_with_their_gradients(
  T, heads, packed, masked, inclusive, start
):
  a, mask = inputs(2, T, *heads, masked=masked)
  segments = jnp.asarray(PACKED, jnp.int32) if packed else None
  with pallas_support.interpreted():
    got = by_kernel(a, mask, segments, start, inclusive)
  check(
    got,
    definition(a, mask, None if segments is None else np.asarray(segments), start, inclusive),
    FLOAT32,
  )


def test_bfloat16_is_rounded_once_on_the_way_out():
  a, _ = inputs(1, 130, 4, 2, 128, jnp.bfloat16)
  with pallas_support.interpreted():
    got = by_kernel(a, None, None, 0, True)
  assert [x.dtype for x in got[:4]] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16]
  want = definition(a, None, None, 0, True)
  # One rounding of results up to 5: 2^-9 of each. The phases' gradient is made of the rounded
  # results: 2^-9 of each of 6 products of a pair, over up to 130 tokens, with random signs.
  check(got, want, FLOAT32, ["final"])
  check(got, want, 2**-8, ["q", "k", "dq", "dk", "dlog_f", "dinitial"])


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there(monkeypatch):
  monkeypatch.setitem(blocks.TOKENS, "", 128)  # segments cross a block
  a, mask = inputs(2, 150, 4, 4, 64, masked=True)
  segments = jnp.asarray(PACKED, jnp.int32)
  with every_detector():
    got = by_kernel(a, mask, segments, 0, True)
    jax.block_until_ready(got)
  check(got, definition(a, mask, np.asarray(segments), 0, True), FLOAT32)


def test_on_a_mesh_the_phase_goes_on_from_device_to_device():
  a, mask = inputs(2, 256, 8, 8, 64, masked=True)
  mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = by_kernel(a, mask, None, 0, True, spec=P("data", "sequence", "tensor"))
  check(got, definition(a, mask, None, 0, True), FLOAT32)


def test_what_is_not_supported_is_refused_with_the_remedy():
  def run(N=4, K=4, H=64, dtype=jnp.float32, rotary_dim=None, **options):
    q, k = jnp.zeros((2, 3, N, H), dtype), jnp.zeros((2, 3, K, H), dtype)
    log_f = jnp.zeros((2, 3, K))
    return carope_rotate(
      q, k, log_f, rotary_dim=rotary_dim or H, implementation="pallas", **options
    )

  def refused(match, **case):
    with pytest.raises(NotImplementedError, match=match):
      run(**case)

  refused("trace is for cpu and the kernel needs a TPU")
  with pytest.raises(NotImplementedError, match="writes no phases; use implementation="):
    cumulative_phase(jnp.zeros((2, 3, 4)), 32, implementation="pallas")
  with pallas_support.interpreted():
    refused("not 32 of 64 channels in layout 'half'", rotary_dim=32)
    refused("in layout 'interleaved'", layout="interleaved")
    refused("head_dim is 80 and must be a multiple of 32", H=80)
    refused("it wants bfloat16 or float32", dtype=jnp.float16)
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)):
      refused("under a mesh of several devices pass spec")
      refused("batch 2 do not divide over 4 devices", spec=P("data", None, None))
      refused("kv heads 3 do not divide over 2 devices", N=3, K=3, spec=P(None, None, "tensor"))


def test_blocks_fit_on_chip():
  for _, T, N, K, H in (shapes.CAROPE_SMALL, shapes.CAROPE_REDUCED, shapes.LONG_ROWS):
    found = blocks.tokens("TPU v5", T, N, K, H, 2, 48 * 2**20)
    assert blocks.vmem_bytes(found, N, K, H, 2) <= 48 * 2**20 and found % blocks.STEP == 0
