"""Mesh sizes, the rule table, and where parameters and their moments lie."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxlm.config import ConfigError, build
from jaxlm.models.decoder import DecoderConfig
from jaxlm.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxlm.parallel.place import batch_sharding, host_rows, like_params, placer
from jaxlm.parallel.rules import logical_axes, param_shardings, sharding_context, unsharded

BIG = {
  "w_in": (("layers", "embed", "mlp"), (3, 16, 8)),
  "scale": (("layers", "embed"), (3, 16)),
  "table": (("vocab", "embed"), (512, 512)),
  "spared": ((None, None), (600, 512)),
}


def boxed(declared=BIG):
  def box(names, shape):
    return nn.with_logical_partitioning(lambda: jnp.zeros(shape), names)()

  return jax.eval_shape(lambda: {name: box(*given) for name, given in declared.items()})


def test_minus_one_takes_the_rest_and_all_axes_are_always_there():
  mesh = make_mesh(MeshConfig(data=2, tensor=2))
  assert mesh.axis_names == AXES and mesh.devices.shape == (2, 2, 1, 2)


@pytest.mark.parametrize(
  "cfg, said",
  [
    (dict(data=2, fsdp=2), "data=2 x fsdp=2 x sequence=1 x tensor=1 = 4 devices, but there are 8"),
    (dict(data=3), "the fixed axes need a multiple of 3 devices, there are 8"),
    (dict(data=-1), "mesh.data and mesh.fsdp are both -1"),
    (dict(tensor=0), "tensor = 0: wanted 1 or more or -1"),
  ],
)
def test_a_mesh_that_does_not_match_says_which_number(cfg, said):
  with pytest.raises(ConfigError, match=said):
    make_mesh(MeshConfig(**cfg))


def test_rules_place_parameters_and_moments_follow_their_parameter():
  mesh, tree = make_mesh(MeshConfig(fsdp=4, tensor=2)), boxed()
  shardings = param_shardings(tree, mesh)
  assert shardings["w_in"].is_equivalent_to(jax.NamedSharding(mesh, P(None, "fsdp", "tensor")), 3)
  assert shardings["table"].is_equivalent_to(jax.NamedSharding(mesh, P("tensor", "fsdp")), 2)
  params = nn.unbox(tree)
  moments = jax.eval_shape(optax.adam(1.0).init, params)
  placed = like_params(moments, params, shardings, mesh)
  assert placed[0].mu == shardings and placed[0].nu == shardings
  assert placed[0].count.is_fully_replicated


def test_a_logical_name_without_a_rule_is_an_error_that_names_the_parameter():
  with pytest.raises(
    ConfigError,
    match=r"parameter w \(4, 4\): no sharding rule for logical axis 'embd'; did you mean 'embed'",
  ):
    param_shardings(boxed({"w": (("embd", "mlp"), (4, 4))}), make_mesh(MeshConfig()))


def test_a_dimension_that_the_mesh_does_not_divide_is_an_error_that_names_both():
  with pytest.raises(
    ConfigError,
    match=r"parameter w \(12, 4\): its 'embed' axis of size 12 is not divisible by mesh.fsdp = 8",
  ):
    param_shardings(boxed({"w": (("embed", "mlp"), (12, 4))}), make_mesh(MeshConfig()))


def test_the_error_names_the_field_of_the_configuration_to_change():
  cfg = build(
    DecoderConfig,
    dict(
      vocab_size=64,
      d_model=32,
      num_layers=1,
      mixer=dict(kind="attention", num_heads=4, num_kv_heads=2),
    ),
  )
  tokens = jnp.zeros((1, 8), jnp.int32)
  tree = jax.eval_shape(lambda: cfg.build().init(jax.random.key(0), tokens)["params"])
  with pytest.raises(
    ConfigError,
    match=r"model.mixer.num_kv_heads = 2 is not divisible by mesh.tensor = 4 \(parameter "
    r"blocks/mixer/w_k \(1, 32, 2, 8\) is split along its 'kv_heads' axis\)",
  ):
    param_shardings(tree, make_mesh(MeshConfig(tensor=4)), model=cfg)
  with pytest.raises(ConfigError, match=r"model.d_model = 32 is not divisible by mesh.fsdp = 5"):
    param_shardings(tree, make_mesh(MeshConfig(), jax.devices()[:5]), model=cfg)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """What a mesh of several slices is made from."""

  id: int
  slice_index: int
  process_index: int
  platform: str = "cpu"  # without coordinates on a torus
  device_kind: str = "fake"


def test_several_slices_are_joined_along_data_only():
  # Interleaved, as the runtime may list them.
  devices = sorted(
    (FakeDevice(i, i // 4, i // 2) for i in range(8)), key=lambda d: (d.id % 4, d.id)
  )
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices)
  assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
  mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)  # data also inside a slice
  assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {0}, {1}, {1}]
  with pytest.raises(ConfigError, match=r"mesh.data = 1 is not a multiple of the 2 slices"):
    make_mesh(MeshConfig(fsdp=8), devices)
  with pytest.raises(ConfigError, match=r"slices of 4 and 3 devices"):
    make_mesh(MeshConfig(data=-1, fsdp=1), devices[:-1])


@pytest.mark.compile
def test_gradients_cross_slices_and_weights_do_not():
  """Two v5e:2x2 slices: the compiled step gathers weights within a slice only."""
  from jaxlm.preflight.topology import devices

  mesh = make_mesh(MeshConfig(data=2, fsdp=4), list(devices("v5e:2x2", num_slices=2).flat))
  assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]

  def shard(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, P(*spec)))

  w, x = shard((512, 512), "fsdp", None), shard((64, 512), ("data", "fsdp"), None)
  step = jax.jit(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), out_shardings=w.sharding)
  text = step.lower(w, x).compile().as_text()
  groups = [
    line for line in text.splitlines() if "all-gather" in line and "replica_groups=" in line
  ]
  # Groups of more than one slice's four devices would say so here: slices see only themselves.
  assert groups and all(
    re.search(r"replica_groups=\{\{\d,\d,\d,\d\}\}|replica_groups=\[\d,4\]", line)
    for line in groups
  ), groups


def test_large_parameters_that_every_device_holds_in_full_are_listed():
  mesh, tree = make_mesh(MeshConfig()), boxed()
  assert unsharded(nn.unbox(tree), param_shardings(tree, mesh)) == [("spared", 600 * 512 * 4)]
  one = make_mesh(MeshConfig(), jax.devices()[:1])
  assert unsharded(nn.unbox(tree), param_shardings(tree, one)) == []


def test_undeclared_axes_are_none_per_dimension():
  assert logical_axes({"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}) == {"a": (None, None)}


def test_constraints_inside_the_context_shard_activations():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
  with sharding_context(mesh):
    constrain = jax.jit(lambda x: nn.with_logical_constraint(x, ("batch", "seq", "embed_act")))
    out = constrain(placer(mesh)(np.zeros((8, 4, 6), np.float32)))
  assert out.sharding.is_equivalent_to(jax.NamedSharding(mesh, P(("data", "fsdp"), "sequence")), 3)


def test_batches_are_split_over_data_and_fsdp_and_one_process_reads_everything():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  batch = placer(mesh)({"tokens": np.arange(32).reshape(8, 4)})
  assert batch["tokens"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
  assert {s.data.shape for s in batch["tokens"].addressable_shards} == {(2, 4)}
  np.testing.assert_array_equal(batch["tokens"], np.arange(32).reshape(8, 4))
  assert host_rows(mesh) == (0, 1)
