"""Every registered mixer, and an H-Net: packed documents are as if apart, streamed tokens as if
whole; outputs and gradients.

A mixer is in these tests by being registered: it needs a small configuration in FIELDS.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import filled, random_params

from jaxlm.kernels.ssd.blocks import chunk_length
from jaxlm.layers.mixer import MIXERS, Context
from jaxlm.models import MODELS

CHUNK = 16
FIELDS = {
  "attention": dict(num_heads=2, position="rope"),
  "similarity_attention": dict(
    num_heads=2, num_kv_heads=1, position="rope", similarity="sigmoid", normaliser="none", slot="kv"
  ),
  "key_only_attention": dict(num_heads=2, position="rope"),
  "stream_attention": dict(num_heads=2, position="rope"),
  "channel_mlp": dict(d_ff=8),
  "mamba2": dict(d_state=4, head_dim=8, num_groups=2),
  "gla": dict(num_heads=2, chunk=CHUNK),
  "delta_rule": dict(num_heads=2, chunk=CHUNK),
  "gated_delta_rule": dict(num_heads=2, chunk=CHUNK),
  "lact": dict(num_heads=2, window=CHUNK, position="rope", fast=dict(num_heads=2, chunk=CHUNK)),
  "hybrid": dict(
    members=(
      dict(kind="gla", num_heads=2, chunk=CHUNK),
      dict(kind="attention", num_heads=2, window=5),
    )
  ),
}
D = 16
#: Of the mixers whose chunk is the kernel's own choice.
KERNEL_CHUNK = {name: chunk_length("cpu", 8, 4) for name in ("mamba2", "hnet")}
#: LaCT learns at the chunk boundaries of the row, so a document that does not begin at one is
#: learned in other pieces.
ON_A_GRID = ("lact",)


def rows_of(chunk):
  """Lengths of the documents of each row, padding behind them: one token, around the chunk, a whole
  row, nothing; and T.
  """
  T = 3 * chunk + 5
  return [(1, chunk - 1, chunk, chunk + 1), (chunk, 1, 1, 2 * chunk - 1), (T,), ()], T


def test_every_registered_mixer_has_a_configuration_here():
  assert set(FIELDS) == set(MIXERS.table) - {"pattern"}  # a pattern is an order of mixers, not one


class Stack:
  """One mixer, its output and the gradient of a fixed functional of it."""

  def __init__(self, kind):
    cfg = MIXERS.build(dict(kind=kind, **FIELDS[kind]))
    self.run = lambda module, x, context, state: module(x, context, state)
    self.build = lambda: cfg.build(D, "float32")
    x = jnp.zeros((1, 4, D))
    ids = jnp.ones((1, 4), jnp.int32)
    context = Context(ids, ids, embedding_BTD=x, packed=False)
    init = nn.init(self.run, self.build())
    self.params = filled(jax.eval_shape(lambda: init(jax.random.key(0), x, context, None)))[
      "params"
    ]
    self.state = lambda rows, length: cfg.init_state(D, rows, length, "float32")

  def apply(self, params, x, ids, positions, state=None, packed=True):
    return nn.apply(self.run, self.build())(
      {"params": params}, x, Context(ids, positions, embedding_BTD=x, packed=packed), state
    )

  def inputs(self, rng, rows, length):
    return jnp.asarray(rng.standard_normal((rows, length, D)), jnp.float32)


class HNetStack(Stack):
  """A whole H-Net, from bytes to logits: chunks, buffers, smoothing and its inner stacks."""

  def __init__(self):
    stage = dict(
      d_model=D,
      d_ff=16,
      attention=dict(num_heads=2, position="rope"),
      mamba=dict(d_state=4, head_dim=8),
    )
    cfg = MODELS.build(dict(kind="hnet", layout="m1 [T1] m1", stages=(stage, stage)))
    self.model = cfg.build()
    self.params = random_params(cfg)
    self.state = cfg.init_state

  def apply(self, params, x, ids, positions, state=None, packed=True):
    variables = {"params": params}
    if state is None:
      return self.model.apply(
        variables, x, ids if packed else None, positions if packed else None
      ), None
    return self.model.apply(variables, x, state, ids, method="extend")

  def inputs(self, rng, rows, length):
    return jnp.asarray(rng.integers(0, 256, (rows, length)), jnp.int32)


#: What others stand for: hybrid and pattern have members that are tried alone, the plain delta rule is
#: the gated one without decay, H-Net has tests of its own; the last three are attention with other
#: scores.
COSTLY = (
  "hybrid",
  "pattern",
  "delta_rule",
  "hnet",
  "similarity_attention",
  "key_only_attention",
  "stream_attention",
)
PARAMS = [
  pytest.param(name, marks=pytest.mark.slow) if name in COSTLY else name
  for name in (*FIELDS, "hnet")
]


@pytest.fixture(scope="module", params=PARAMS)
def stack(request):
  stack = HNetStack() if request.param == "hnet" else Stack(request.param)
  stack.chunk = KERNEL_CHUNK.get(request.param, CHUNK)
  return request.param, stack


def packed_rows(rows, T):
  """(segment ids, positions), int32 (rows, T)."""
  ids, positions = np.zeros((2, len(rows), T), np.int32)
  for row, lengths in enumerate(rows):
    at = 0
    for number, length in enumerate(lengths, 1):
      ids[row, at : at + length], positions[row, at : at + length] = number, np.arange(length)
      at += length
  return jnp.asarray(ids), jnp.asarray(positions)


def close(got, want, tolerance=2e-5):
  """Relative to the largest value of each array: float32 sums in another order."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(
      a,
      b,
      rtol=0,
      atol=tolerance * max(1.0, float(np.abs(b).max())),
      err_msg=jax.tree_util.keystr(path),
    )


def test_packed_documents_are_as_if_apart(stack):
  name, stack = stack
  rng, (rows, T) = np.random.default_rng(0), rows_of(stack.chunk)
  x, (ids, positions) = stack.inputs(rng, len(rows), T), packed_rows(rows, T)
  shape = jax.eval_shape(lambda: stack.apply(stack.params, x, ids, positions)[0]).shape
  weights = jnp.asarray(rng.standard_normal(shape), jnp.float32) * (ids != 0)[..., None]

  def packed(params, x):
    y = stack.apply(params, x, ids, positions)[0]
    return jnp.sum(y * weights), y

  # Every document in a row of its own, without segments: what is behind it is zeros, which nothing
  # before them reads. Documents of LaCT keep their place on the row's grid of chunks: what is in
  # front of them is padding.
  places = [
    (row, sum(lengths[:n]), length)
    for row, lengths in enumerate(rows)
    for n, length in enumerate(lengths)
  ]
  leads = [at % stack.chunk if name in ON_A_GRID else 0 for _, at, _ in places]
  width = T + max(leads)
  there = jnp.asarray([np.arange(width) >= lead for lead in leads], jnp.int32)
  where = jnp.asarray([np.maximum(np.arange(width) - lead, 0) for lead in leads], jnp.int32)

  def apart(params, x):
    def alone(v, place, lead):
      return (
        jnp.zeros((width, *v.shape[2:]), v.dtype)
        .at[lead : lead + place[2]]
        .set(v[place[0], place[1] : place[1] + place[2]])
      )

    def each(v):
      return jnp.stack([alone(v, *one) for one in zip(places, leads)])

    y = stack.apply(params, each(x), there, where, packed=any(leads))[0]
    return jnp.sum(y * each(weights)), [
      y[n, lead : lead + place[2]] for n, (place, lead) in enumerate(zip(places, leads))
    ]

  differentiated = (0, 1) if jnp.issubdtype(x.dtype, jnp.floating) else (0,)
  (_, y), grads = jax.jit(jax.value_and_grad(packed, differentiated, has_aux=True))(stack.params, x)
  (_, want), want_grads = jax.jit(jax.value_and_grad(apart, differentiated, has_aux=True))(
    stack.params, x
  )
  for (row, at, length), piece in zip(places, want):
    close(y[row, at : at + length], piece)
  assert bool(jnp.all(jnp.isfinite(y)))  # the row of padding, too
  close(grads, want_grads, 1e-4)  # sums over all tokens


def test_padding_and_its_contents_change_nothing_and_get_no_gradient(stack):
  name, stack = stack
  rng, (rows, T) = np.random.default_rng(1), rows_of(stack.chunk)
  x, (ids, positions) = stack.inputs(rng, len(rows), T), packed_rows(rows, T)
  there = (ids != 0).reshape(*ids.shape, *[1] * (x.ndim - 2))
  other = jnp.where(there, x, stack.inputs(rng, len(rows), T))
  run = jax.jit(lambda x: stack.apply(stack.params, x, ids, positions)[0] * (ids != 0)[..., None])
  np.testing.assert_array_equal(run(other), run(x))
  if jnp.issubdtype(x.dtype, jnp.floating):
    grad = jax.jit(jax.grad(lambda x: jnp.sum(run(x) ** 2)))(x)
    assert not np.asarray(jnp.where(there, 0.0, grad)).any() and bool(jnp.all(jnp.isfinite(grad)))


@pytest.mark.parametrize(
  "cuts",
  [
    pytest.param(lambda C: (1,), marks=pytest.mark.slow),
    lambda C: (C - 1, C, C + 1),
    pytest.param(lambda C: (C, 2 * C), marks=pytest.mark.slow),
    pytest.param(lambda C: (2, 2 * C + 1), marks=pytest.mark.slow),
  ],
  ids=["one", "around the chunk", "on chunks", "behind a chunk"],
)
def test_streamed_tokens_are_as_if_whole(stack, cuts):
  """Prefills that end around the chunk, then steps; a row of fewer tokens rests, a row without any
  stays as it was.
  """
  name, stack = stack
  cuts, (_, T) = cuts(stack.chunk), rows_of(stack.chunk)
  rng, lengths = np.random.default_rng(2), np.array([T, 1, stack.chunk + 1, 0])
  x = stack.inputs(rng, len(lengths), T)
  ids = jnp.asarray(np.arange(T)[None] < lengths[:, None], jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], ids.shape)
  whole = jax.jit(lambda x: stack.apply(stack.params, x, ids, positions)[0])(x)
  weights = jnp.asarray(rng.standard_normal(whole.shape), jnp.float32) * ids[..., None]

  bounds = [0, *cuts, *range(cuts[-1] + 1, cuts[-1] + 4), T]
  sizes = [(size, len(list(same))) for size, same in itertools.groupby(np.diff(bounds).tolist())]

  def streamed(params, x):
    """Pieces of one size behind one another are the steps of a scan: there is less to compile."""
    state, out, at = stack.state(len(lengths), T), [], 0

    def piece(state, inputs):
      y, state = stack.apply(params, *inputs, state)
      return state, y

    for size, number in sizes:
      pieces = [
        jnp.moveaxis(
          v[:, at : at + size * number].reshape(len(v), number, size, *v.shape[2:]), 1, 0
        )
        for v in (x, ids, positions)
      ]
      state, y = jax.lax.scan(piece, state, pieces)
      out += [*y]
      at += size * number
    y = jnp.concatenate(out, 1)
    return jnp.sum(y * weights), y

  if name == "hnet":  # decoding is not differentiated
    y = jax.jit(streamed)(stack.params, x)[1]
  else:
    (_, y), grads = jax.jit(jax.value_and_grad(streamed, has_aux=True))(stack.params, x)
    want = jax.jit(
      jax.grad(lambda params: jnp.sum(stack.apply(params, x, ids, positions)[0] * weights))
    )(stack.params)
    close(grads, want, 1e-4)
  close(y * ids[..., None], whole * ids[..., None])
