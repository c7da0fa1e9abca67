"""One call of every op at a shape that one GPU has in a paper's configuration: what `bench/kernels.py`
times and what is compiled for GPUs that are not there.

bfloat16, as accelerators train. FLOPs count the products of the plain form, bytes what must be read
and written at least; both of the forward pass. Backward is counted as twice the products, and as
the same bytes once more and the gradients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.kernels import attention as attention_op
from jaxlm.kernels import compact, ema_upsample, gla, phase, random_head, route, ssd
from jaxlm.kernels import delta_rule as delta
from jaxlm.kernels import fast_weight_chunk as fast
from jaxlm.kernels import linear_cross_entropy as loss
from jaxlm.kernels import newton_schulz as newton
from jaxlm.kernels.fast_weight_chunk import shapes as fast_shapes
from jaxlm.kernels.ssd import shapes as ssd_shapes

BF16, F32 = jnp.bfloat16, jnp.float32


@dataclasses.dataclass(frozen=True)
class Case:
  """fn(implementation, *arguments): the op. gradients: arguments it is differentiated in. peer: what
  else computes it: "sdpa" (torch), "cudnn", "fla" (flash-linear-attention)."""

  op: str
  name: str
  fn: Callable
  arguments: tuple[Any, ...]
  gradients: tuple[int, ...]
  flops: int
  implementations: tuple[str, ...] = ("xla",)
  peers: tuple[str, ...] = ()

  def forward(self, implementation: str | None) -> Callable:
    return lambda *arguments: self.fn(implementation, *arguments)

  def backward(self, implementation: str | None) -> Callable:
    """Results and gradients of the sum of squares of every floating result."""

    def total(*arguments):
      out = jax.tree.leaves(self.fn(implementation, *arguments))
      return sum(jnp.sum(jnp.square(y.astype(F32))) for y in out if y.dtype.kind in "fV")

    return jax.value_and_grad(total, self.gradients)

  def bytes(self) -> int:
    out = jax.eval_shape(self.forward("xla"), *self.arguments)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((self.arguments, out)))


def _struct(*shape: int, dtype=BF16) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _attention(name: str, B, T, N, K, H, bias=(), options=None, segments=False, peers=()):
  causal = (options or {}).get("causal", True)
  ids = (_struct(B, T, dtype=jnp.int32),) if segments else ()

  def fn(implementation, q, k, v, bias, *ids):
    return attention_op.attention(
      q,
      k,
      v,
      bias=bias or None,
      implementation=implementation,
      q_segment_ids_BT=ids[0] if ids else None,
      **(options or {}),
    )

  q, k = _struct(B, T, N, H), _struct(B, T, K, H)
  flops = 4 * B * N * T * T * H // (2 if causal else 1)
  arguments = (q, k, k, tuple(bias), *ids)
  names = ("xla", "pallas_gpu", *(("cudnn",) if "sdpa" in peers else ()))
  return Case("attention", name, fn, arguments, (0, 1, 2, 3), flops, names, peers)


def _ssd(name: str, B, T, N, H, K, E):
  def fn(implementation, x, dt, a, b, c, d):
    return ssd.ssd(x, dt, a, b, c, d_N=d, implementation=implementation)

  b, row = _struct(B, T, K, E), _struct(N, dtype=F32)
  arguments = _struct(B, T, N, H), _struct(B, T, N, dtype=F32), row, b, b, row
  flops = 2 * B * T * N * (H * 256 + 2 * H * E)  # chunks of 256, half of whose square is needed
  return Case("ssd", name, fn, arguments, tuple(range(6)), flops, ("xla", "pallas_gpu"), ("fla",))


def _fast_weights(name: str, B, N, H, F, C):
  rule = fast.Rule(muon=newton.LANGUAGE, muon_dtype="bfloat16", dtype="bfloat16")

  def fn(implementation, w0, w1, w2, q, k, v, eta):
    schedule = fast.Causal(C)
    return fast.fast_weight_chunk(
      (w0, w1, w2), q, k, v, (eta,) * 3, schedule=schedule, rule=rule, implementation=implementation
    )[0]

  w0, w1 = (_struct(B, N, *s, dtype=F32) for s in ((F, H), (H, F)))
  q, eta = _struct(B, N, 4 * C, H), _struct(B, N, 4 * C, 1, dtype=F32)
  # Three products to read, six to learn, of three chunks of four; Newton-Schulz beside them.
  flops = 2 * B * N * C * H * F * (3 * 4 + 6 * 3) + 3 * B * N * 5 * 6 * F * H * H * 3
  arguments = w0, w1, w0, q, q, q, eta
  implementations = ("xla", "pallas_gpu")
  return Case("fast_weight_chunk", name, fn, arguments, tuple(range(7)), flops, implementations)


def _gla(gated: bool | None):
  B, T, N, H = (1, 8192, 4, 384) if gated is None else (1, 8192, 12, 128)
  q, row = _struct(B, T, N, H), _struct(B, T, N, dtype=F32)
  flops = 2 * B * T * N * (4 * 64 * H + 2 * H * H)
  if gated is None:

    def fn(implementation, q, k, v, log_decay):
      return gla.gla(q, k, v, log_decay, implementation=implementation)[0]

    arguments = q, q, q, _struct(B, T, N, H, dtype=F32)
    return Case("gla", "lact_760m", fn, arguments, (0, 1, 2, 3), flops, peers=("fla",))

  def fn(implementation, q, k, v, beta, log_decay):
    return delta.delta_rule(q, k, v, beta, log_decay, implementation=implementation)[0]

  return Case("delta_rule", "lact_760m, gated", fn, (q, q, q, row, row), tuple(range(5)), flops)


def _others() -> list[Case]:
  B, T, V, D = 8, 1024, 50_304, 768
  h, ids = _struct(B, T, D), _struct(B, T, dtype=jnp.int32)

  def cross_entropy(implementation, h, w, ids):
    return loss.linear_cross_entropy(h, w, ids, implementation=implementation)[0]

  def random(implementation, h, seed, ids):
    return random_head.random_head(h, seed, ids, vocab_size=4096, implementation=implementation)[0]

  def newton_schulz(implementation, g):
    return newton.newton_schulz(g, dtype="bfloat16", implementation=implementation)

  def rotate(implementation, q, k, log_f):
    H = q.shape[-1]
    return phase.carope_rotate(q, k, log_f, rotary_dim=H, implementation=implementation)[:2]

  def routed(implementation, x, w, first, valid):
    return route.route(x, w, w, first_BT=first, valid_BT=valid, implementation=implementation).p_BT

  def chunks(implementation, keep, h, p):
    slots = compact.compact(keep, 3072, implementation=implementation)
    x = compact.gather(h, slots, implementation=implementation)
    return ema_upsample.ema_upsample(x, p, slots, implementation=implementation)

  q, keep = _struct(32, 512, 12, 64), _struct(1, 8192, dtype=bool)
  row = _struct(1, 8192, 1024)
  products = 2 * B * T * V * D
  return [
    Case(
      "linear_cross_entropy",
      "GPT-2 small",
      cross_entropy,
      (h, _struct(V, D), ids),
      (0, 1),
      products,
    ),
    Case(
      "random_head",
      "length 1,024, 4,096 words",
      random,
      (h, _struct(B, 2, dtype=jnp.uint32), ids),
      (0,),
      2 * B * T * 4096 * D,
    ),
    Case(
      "newton_schulz",
      "lact_760m",
      newton_schulz,
      (_struct(12, 384, 384, dtype=F32),),
      (0,),
      12 * 5 * 6 * 384**3,
    ),
    Case(
      "phase",
      "CARoPE Small",
      rotate,
      (q, q, _struct(32, 512, 12, dtype=F32)),
      (0, 1, 2),
      0,
    ),
    Case(
      "route",
      "H-Net, 1 stage",
      routed,
      (row, _struct(1024, 1024), keep, keep),
      (0, 1),
      4 * 8192 * 1024**2,
    ),
    Case(
      "compact and ema_upsample",
      "H-Net, 1 stage",
      chunks,
      (keep, row, _struct(1, 3072, dtype=F32)),
      (1, 2),
      0,
    ),
  ]


def cases() -> list[Case]:
  """Every case, op after op."""
  buckets = attention_op.BucketBias(_struct(32, 6, dtype=F32), True, 128)
  gate = attention_op.KeyBias(None, _struct(4, 1024, 1, dtype=F32))
  both = {"causal": False, "softmax1": True}
  return [
    _attention("CARoPE Small", 32, 512, 12, 12, 64, peers=("sdpa",)),
    _attention("4,096 tokens, heads of 128", 2, 4096, 16, 4, 128, peers=("sdpa",)),
    _attention("packed rows", 8, 2048, 12, 12, 64, segments=True),
    _attention("MrT5 small", 4, 1024, 6, 6, 64, bias=(buckets, gate), options=both),
    _ssd("H-Net 1-stage L encoder", 2, *ssd_shapes.PAPER["hnet_1stage_L encoder"][1:]),
    _fast_weights("lact_760m", *fast_shapes.PAPER["lact_760m"]),
    _gla(None),
    _gla(True),
    *_others(),
  ]
