"""Log softmax of the output projection: by chunks against the definition, its memory and its
sharding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.linear_cross_entropy import blocks, linear_cross_entropy, tiles


def inputs(B=2, T=11, D=8, V=19, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 6)

  def draw(key, *shape):
    return jax.random.normal(key, shape)

  return (
    draw(keys[0], B, T, D).astype(dtype),
    draw(keys[1], V, D).astype(dtype),
    draw(keys[2], V),
    jax.random.randint(keys[3], (B, T), 0, V),
    (draw(keys[4], B, T), draw(keys[5], B, T)),
  )


def value_and_pull(h, w, bias, targets, gradients, **options):
  @jax.jit
  def run(h, w, bias):
    out, vjp = jax.vjp(
      lambda h, w, bias: linear_cross_entropy(h, w, targets, bias_V=bias, **options), h, w, bias
    )
    return out, vjp(gradients)

  return run(h, w, bias)


def close(got, want, tolerance):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_allclose(
      np.asarray(g, np.float32), np.asarray(w, np.float32), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize(
  "softcap,keep_bytes", [(None, 0), (None, 1280), (None, 2**20), (2.0, 2**20)]
)
@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_chunks_agree_with_the_definition_in_both_outputs_and_all_gradients(
  chunk, softcap, keep_bytes
):
  h, w, bias, targets, gradients = inputs()
  got = value_and_pull(
    h, w, bias, targets, gradients, softcap=softcap, chunk=chunk, keep_bytes=keep_bytes
  )
  want = value_and_pull(h, w, bias, targets, gradients, softcap=softcap, implementation="reference")
  close(got, want, 1e-5)  # float32 sums in another order


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rows_that_do_not_count_are_zero_and_have_no_gradient(share):
  h, w, bias, targets, gradients = inputs()
  where = jnp.asarray(np.random.default_rng(0).random(targets.shape) < share)
  got = value_and_pull(h, w, bias, targets, gradients, where_BT=where, chunk=2)
  want = value_and_pull(
    h,
    w,
    bias,
    targets,
    jax.tree.map(lambda g: jnp.where(where, g, 0.0), gradients),
    implementation="reference",
  )
  close(got, (jax.tree.map(lambda x: jnp.where(where, x, 0.0), want[0]), want[1]), 1e-5)
  close(value_and_pull(h, w, bias, None, gradients[1], where_BT=where, chunk=2)[0], got[0][1], 1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
  "tile", [tiles.Tile(8, 4, 5), tiles.Tile(16, 3, 100), tiles.Tile(4, 4, 19)]
)
def test_tiles_agree_with_the_definition_at_every_number_of_rows(tile, softcap):
  h, w, bias, _, _ = inputs(B=1)
  want = linear_cross_entropy(h, w, bias_V=bias, softcap=softcap, implementation="reference")[0]
  run = jax.jit(lambda count: tiles.log_z(h[0], w, bias, count, softcap=softcap, tile=tile))
  for count in range(len(want) + 1):
    np.testing.assert_allclose(run(count)[:count], want[:count], atol=1e-5)


def test_rows_that_count_go_by_tiles_and_keep_their_gradient(monkeypatch):
  h, w, bias, _, gradients = inputs()
  where = jnp.asarray(np.random.default_rng(0).random(h.shape[:2]) < 0.4)
  want = value_and_pull(
    h, w, bias, None, jnp.where(where, gradients[1], 0.0), implementation="reference"
  )
  monkeypatch.setattr(blocks, "CPU", blocks.Sizes(0, 0, 4, tiles.Tile(8, 4, 5)))
  got = value_and_pull(h, w, bias, None, gradients[1], where_BT=where)
  close(got, (jnp.where(where, want[0], 0.0), want[1]), 1e-5)


def test_the_definition_is_jax_log_softmax():
  h, w, bias, targets, _ = inputs()
  log_prob, log_z = linear_cross_entropy(h, w, targets, bias_V=bias, implementation="reference")
  logits = jnp.einsum("btd,vd->btv", h, w) + bias[None, None]
  want = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(log_prob, want, atol=2e-6)
  np.testing.assert_allclose(log_z, jax.nn.logsumexp(logits, -1), atol=2e-6)


def test_bfloat16_operands_give_float32_results_near_the_definition():
  h, w, _, targets, gradients = inputs(dtype=jnp.bfloat16)
  got = value_and_pull(h, w, None, targets, gradients, chunk=4)
  want = value_and_pull(h, w, None, targets, gradients, implementation="reference")
  assert got[0][0].dtype == jnp.float32
  close(got, want, 4e-2)  # gradients of logits are rounded to 8 bits before the last products


def test_a_sure_prediction_keeps_its_gradient_when_its_softmax_is_kept_in_bfloat16():
  h, w = (
    jnp.ones((1, 1, 8), jnp.bfloat16),
    jnp.zeros((4, 8), jnp.bfloat16).at[1].set(1.0),
  )  # logits 0, 8, 0, 0

  def loss(h, keep_bytes):
    return linear_cross_entropy(
      h, w, jnp.ones((1, 1), jnp.int32), chunk=1, keep_bytes=keep_bytes, implementation="xla"
    )[0].sum()

  want = 1 - np.exp(8) / (np.exp(8) + 3)  # 0.001; p itself rounds to 1 in bfloat16
  np.testing.assert_allclose(jax.grad(loss)(h, 2**20).astype(np.float32), want, rtol=1e-2)
  np.testing.assert_allclose(jax.grad(loss)(h, 0).astype(np.float32), want, rtol=1e-2)


def test_a_large_bias_does_not_spoil_the_gradients_of_a_padded_last_stretch():
  h, w, bias, targets, gradients = inputs()
  got = value_and_pull(h, w, bias + 200.0, targets, gradients, chunk=4, keep_bytes=0)
  close(
    got[1][:2],
    value_and_pull(h, w, bias, targets, gradients, implementation="reference")[1][:2],
    1e-4,
  )


def test_without_targets_it_is_the_row_logsumexp():
  h, w, bias, _, gradients = inputs()
  got = value_and_pull(h, w, bias, None, gradients[1], chunk=3)
  want = value_and_pull(h, w, bias, None, gradients[1], implementation="reference")
  close(got, want, 1e-5)


def test_no_array_of_batch_by_length_by_vocabulary_exists():
  B, T, D, V = 4, 256, 16, 512
  h, w, _, targets, _ = inputs(B, T, D, V)

  def loss(h, w, chunk):
    return -linear_cross_entropy(h, w, targets, chunk=chunk, keep_bytes=0)[0].sum()

  def memory(chunk):
    return (
      jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
      .lower(h, w, chunk)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  assert memory(16) < 0.4 * 4 * B * T * V
  assert memory(T) > 4 * B * T * V  # the measure does see such an array


@pytest.mark.parametrize(
  "w_spec", [P(None, None), P("tensor", None), P(None, "fsdp"), P("tensor", "fsdp")]
)
def test_sharded_over_eight_devices_it_agrees_with_one(w_spec):
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  h, w, bias, targets, gradients = inputs(B=8, T=12, D=8, V=32)
  want = value_and_pull(h, w, bias, targets, gradients, implementation="reference")
  with jax.set_mesh(mesh):

    def put(x, *spec):
      return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    got = value_and_pull(
      put(h, ("data", "fsdp")),
      put(w, *w_spec),
      put(bias, None),
      put(targets, ("data", "fsdp")),
      jax.tree.map(lambda g: put(g, ("data", "fsdp")), gradients),
      chunk=4,
      spec=P(("data", "fsdp"), None, None),
      w_spec=w_spec,
    )
  close(got, want, 1e-5)


def test_time_and_batch_may_both_be_sharded():
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "sequence"), axis_types=(AxisType.Auto,) * 3)
  h, w, bias, targets, gradients = inputs(B=4, T=12, D=8, V=32)
  want = value_and_pull(h, w, bias, targets, gradients, implementation="reference", softcap=3.0)
  with jax.set_mesh(mesh):

    def put(x):
      return jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"), "sequence")))

    def whole(x):
      return jax.device_put(x, NamedSharding(mesh, P()))

    got = value_and_pull(
      put(h),
      whole(w),
      whole(bias),
      put(targets),
      jax.tree.map(put, gradients),
      chunk=4,
      softcap=3.0,
      spec=P(("data", "fsdp"), "sequence", None),
      w_spec=P(None, "fsdp"),
    )
  close(got, want, 1e-5)


def test_on_a_mesh_the_gradient_of_w_is_reduced_once_not_in_every_chunk():
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  h, w, _, targets, _ = inputs(B=8, T=12, D=8, V=32)
  specs = dict(spec=P("fsdp", None, None), w_spec=P(None, "fsdp"))

  def loss(h, w):
    return -linear_cross_entropy(h, w, targets, chunk=2, keep_bytes=0, **specs)[0].sum()

  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss, (0, 1))).lower(h, w).compile().as_text()
  reductions = [
    line for line in text.splitlines() if "all-reduce(" in line or "reduce-scatter(" in line
  ]
  assert "while/body" in text and len(reductions) == 1 and "while/body" not in reductions[0]


def test_chunks_are_cut_from_time_so_a_sharded_batch_is_never_gathered():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  h, w, _, targets, _ = inputs(B=8, T=12, D=8, V=32)
  with jax.set_mesh(mesh):

    def put(x, *spec):
      return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    def loss(h, w, targets):
      return -linear_cross_entropy(h, w, targets, chunk=4, spec=P("data", None, None))[0].sum()

    text = (
      jax.jit(jax.grad(loss, (0, 1)))
      .lower(put(h, "data"), put(w), put(targets, "data"))
      .compile()
      .as_text()
    )
  assert "all-reduce" in text  # the gradient of w
  assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def test_an_unknown_implementation_is_refused_by_name():
  h, w, _, targets, _ = inputs()
  with pytest.raises(NotImplementedError, match="'cuda'"):
    linear_cross_entropy(h, w, targets, implementation="cuda")
  with pytest.raises(NotImplementedError, match="chunk 4"):
    linear_cross_entropy(h, w, targets, implementation="reference", chunk=4)
