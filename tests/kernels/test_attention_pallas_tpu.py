"""The Pallas kernel of attention compiled for TPUs that are not there, forward and backward."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.attention import BucketBias, KeyBias, LinearBias, attention, shapes

pytestmark = pytest.mark.compile

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@pytest.fixture(scope="module")
def mesh_of():
  pytest.importorskip("libtpu")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  def make(chip, shape=(1, 1)):
    devices = np.array(
      topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices
    )
    return Mesh(
      devices.ravel()[: np.prod(shape)].reshape(shape),
      ("data", "tensor"),
      axis_types=(AxisType.Auto,) * 2,
    )

  return make


BIASES = {
  "buckets": lambda B, T, N: (BucketBias, dict(table=(32, N)), {}),
  "alibi": lambda B, T, N: (LinearBias, dict(slope_N=(N,)), {}),
  "cable": lambda B, T, N: (KeyBias, dict(q_BTN=(B, T, N), k_BSN=(B, T, N)), {}),
}


def compiled(
  mesh,
  shape,
  kind,
  dtype=jnp.bfloat16,
  packed=False,
  gate=False,
  implementation="pallas",
  **options,
):
  """HLO of o and all gradients."""
  B, T, N, K, H = shape
  spec = P("data", None, "tensor", None)

  def of(dims, dtype, *place):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*place)))

  make, sizes, static = BIASES[kind](B, T, N)
  parameters = {
    name: of(size, jnp.float32, *(["data", None, "tensor"] if len(size) == 3 else []))
    for name, size in sizes.items()
  }
  if kind == "buckets":
    static = dict(bidirectional=not options.get("causal", True))
  q, k, ids, number = (
    of((B, T, N, H), dtype, *spec),
    of((B, T, K, H), dtype, *spec),
    of((B, T), jnp.int32, "data"),
    of((B, T, 1), jnp.float32, "data"),
  )

  def loss(q, k, v, parameters, number, ids):
    bias = (make(**parameters, **static), *([KeyBias(None, number)] if gate else []))
    o = attention(
      q,
      k,
      v,
      bias=bias,
      spec=spec,
      implementation=implementation,
      **(dict(q_segment_ids_BT=ids) if packed else dict(kv_segment_ids_BS=ids)),
      **options,
    )
    return jnp.sum(o.astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4))).lower(
      q, k, k, parameters, number, ids
    )
    return lowered.compile().as_text()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
  "shape,kind,options",
  [
    (shapes.MRT5_SMALL, "buckets", dict(causal=False, gate=True, softmax1=True, scale=1.0)),
    (shapes.CAROPE_SMALL, "cable", dict(packed=True)),
    (shapes.LEXINVARIANT, "buckets", dict(packed=True)),
    ((1, 8192, 4, 2, 64), "alibi", dict(packed=True)),
    ((2, 300, 4, 1, 80), "alibi", dict(window=100, softcap=30.0, dtype=jnp.float32)),
  ],
  ids=["mrt5", "cable", "lexinvariant", "long_grouped", "odd_float32"],
)
def test_the_kernels_compile_for_every_chip(mesh_of, chip, shape, kind, options):
  text = compiled(mesh_of(chip), shape, kind, **options)
  assert (
    text.count('custom_call_target="tpu_custom_call"') == 2
  )  # forward, and one for all gradients


def test_batch_and_heads_stay_where_they_are_on_a_mesh_and_the_kernel_is_the_default(mesh_of):
  text = compiled(
    mesh_of("v5e", (2, 2)), (4, 1024, 4, 2, 64), "buckets", packed=True, implementation=None
  )
  assert text.count('custom_call_target="tpu_custom_call"') == 2
  assert "all-gather" not in text and "all-to-all" not in text
