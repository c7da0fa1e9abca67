"""Attention compiled for TPUs that are not there: the fused kernel, alone and on a mesh."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.attention import LinearBias, attention

pytestmark = pytest.mark.compile


def compiled_gradient(mesh, spec, options, segments, B=4, T=256, N=4, K=2, H=64):
  """HLO of the forward and backward pass of attention, as chosen for the mesh's devices."""

  def place(shape, dtype, *s):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*s)))

  q = place((B, T, N, H), jnp.bfloat16, *spec)
  k = place((B, T, K, H), jnp.bfloat16, *spec)
  ids = place((B, T), jnp.int32, spec[0])

  def loss(q, k, v, ids):
    o = attention(q, k, v, q_segment_ids_BT=ids if segments else None, spec=P(*spec), **options)
    return jnp.sum(o.astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, k, ids).compile().as_text()


@pytest.fixture(scope="module")
def devices():
  pytest.importorskip("libtpu")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  return np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)


@pytest.mark.parametrize(
  "options,segments",
  [({}, True), (dict(window=100, softcap=30.0), False), (dict(causal=False), True)],
)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
@pytest.mark.parametrize(
  "T, kernels",
  [(256, 2), (1024, 3)],  # ours: o, and all gradients; splash: o, dq, and dk with dv
)
def test_the_fused_kernel_is_chosen_and_compiles_forward_and_backward(
  devices, shape, options, segments, T, kernels
):
  mesh = Mesh(
    devices.ravel()[: np.prod(shape)].reshape(shape),
    ("data", "tensor"),
    axis_types=(AxisType.Auto,) * 2,
  )
  text = compiled_gradient(mesh, ("data", None, "tensor", None), options, segments, T=T)
  assert text.count('custom_call_target="tpu_custom_call"') == kernels
  assert (
    "all-gather" not in text and "all-to-all" not in text
  )  # batch and heads stay where they are


def test_what_the_fused_kernel_does_not_cover_compiles_in_plain_xla(devices):
  mesh = Mesh(devices.reshape(2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  text = compiled_gradient(
    mesh, ("data", None, "tensor", None), dict(bias=LinearBias(jnp.ones(4))), False, T=512
  )
  assert "tpu_custom_call" not in text
