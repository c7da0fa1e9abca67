"""The TPU kernels of linear_cross_entropy compiled for TPUs that are not there, forward and
backward.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.compile


def lowered(
  mesh,
  B,
  T,
  V,
  D,
  dtype=jnp.bfloat16,
  bias=False,
  targets=True,
  softcap=None,
  spec=(None, None, None),
  w_spec=(None, None),
  implementation="pallas",
):
  def place(shape, dtype, *s):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*s)))

  h, w = place((B, T, D), dtype, *spec), place((V, D), dtype, *w_spec)
  rest = (
    (place((V,), jnp.float32, w_spec[0]) if bias else None),
    (place((B, T), jnp.int32, *spec[:2]) if targets else None),
  )

  def loss(h, w, bias_V, targets_BT):
    out = linear_cross_entropy(
      h,
      w,
      targets_BT,
      bias_V=bias_V,
      softcap=softcap,
      implementation=implementation,
      spec=P(*spec),
      w_spec=P(*w_spec),
    )
    return sum(jnp.sum(x) for x in jax.tree.leaves(out))

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2) if bias else (0, 1))).lower(h, w, *rest)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize(
  "case",
  [
    dict(B=64, T=512, V=50_304, D=768),
    dict(B=1, T=8192, V=128_256, D=4096),
    dict(B=3, T=333, V=50_257, D=768, bias=True, targets=False),
    dict(B=1, T=100, V=300, D=192, dtype=jnp.float32, softcap=30.0),
  ],
  ids=["gpt2_small", "llama_8b", "ragged", "small"],
)
def test_the_kernels_compile_and_no_logits_reach_memory(chip, case):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), **case)
  assert kernels(program) == 2
  rows, size = case["B"] * case["T"], jnp.dtype(case.get("dtype", jnp.bfloat16)).itemsize
  # Beside h and its gradient: r, h padded to whole tiles, the targets' words, numbers of rows.
  assert (
    program.compile().memory_analysis().temp_size_in_bytes
    < 5 * size * (rows + 1024) * case["D"] + 2**22
  )


def test_on_a_mesh_each_device_has_its_rows_and_words():
  program = lowered(
    mesh_of("v5e:2x2", fsdp=2, tensor=2),
    4,
    512,
    50_304,
    768,
    spec=("fsdp", None, None),
    w_spec=("tensor", "fsdp"),
  )
  assert kernels(program) == 2
  text = program.compile().as_text()
  assert (
    "bf16[25152,768]" in text and "bf16[50304,768]" not in text
  )  # only the columns of w are gathered


@pytest.mark.parametrize("chip,chosen", [("v5e", 0), ("v5p", 0), ("v6e", 2)])
def test_they_are_the_default_where_their_estimate_is_better(chip, chosen):
  mesh = mesh_of(ONE_CHIP[chip], data=1)
  assert kernels(lowered(mesh, B=8, T=1024, V=50_304, D=2048, implementation=None)) == chosen
  assert kernels(lowered(mesh, B=8, T=1024, V=50_304, D=768, implementation=None)) == 0
  assert kernels(lowered(mesh, B=1, T=100, V=300, D=2048, implementation=None)) == 0
