"""One call of every op that has shapes.py, at each of its shapes: what `jaxlm kernels` lists without
a configuration.

Each entry is (name, function, arguments as ShapeDtypeStruct). bfloat16, as accelerators train.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.kernels import attention, compact, ema_upsample, phase, route, ssd
from jaxlm.kernels.attention import shapes as attention_shapes
from jaxlm.kernels.ema_upsample import shapes as chunk_shapes
from jaxlm.kernels.phase import shapes as phase_shapes
from jaxlm.kernels.route import shapes as route_shapes
from jaxlm.kernels.ssd import shapes as ssd_shapes

Case = tuple[str, Callable, tuple[Any, ...]]


def _struct(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _qkv(shape):
  B, T, N, K, H = shape
  return _struct(B, T, N, H), _struct(B, T, K, H)


def cases() -> Iterator[Case]:
  """Every case, op after op."""
  for name in ("CAROPE_SMALL", "MRT5_SMALL", "LEXINVARIANT"):
    q, k = _qkv(attention_shapes.__dict__[name])
    yield f"attention {name}", attention.attention, (q, k, k)
  for name in ("CAROPE_SMALL", "CAROPE_REDUCED", "LONG_ROWS"):
    shape = phase_shapes.__dict__[name]
    q, k = _qkv(shape)
    log_f = _struct(*k.shape[:3], dtype=jnp.float32)
    yield (
      f"phase {name}",
      lambda q, k, log_f, H=shape[-1]: phase.carope_rotate(q, k, log_f, rotary_dim=H),
      (q, k, log_f),
    )
  for name, (B, T, N, H, K, E) in ssd_shapes.PAPER.items():
    b, f32 = _struct(B, T, K, E), jnp.float32
    yield (
      f"ssd {name}",
      ssd.ssd,
      (_struct(B, T, N, H), _struct(B, T, N, dtype=f32), _struct(N, dtype=f32), b, b),
    )
  for name in ("HNET_1STAGE", "HNET_2STAGE"):
    B, T, C, D = chunk_shapes.__dict__[name]

    def chunks(keep, h, p, C=C):
      slots = compact.compact(keep, C)
      return ema_upsample.ema_upsample(compact.gather(h, slots), p, slots)

    yield (
      f"chunks {name}",
      chunks,
      (_struct(B, T, dtype=bool), _struct(B, T, D), _struct(B, C, dtype=jnp.float32)),
    )
  for name in ("HNET_1STAGE_L", "HNET_2STAGE_XL_INNER"):
    B, T, D = route_shapes.__dict__[name]
    mask = _struct(B, T, dtype=bool)
    yield (
      f"route {name}",
      lambda x, w, mask: route.route(x, w, w, first_BT=mask, valid_BT=mask),
      (_struct(B, T, D), _struct(D, D), mask),
    )
