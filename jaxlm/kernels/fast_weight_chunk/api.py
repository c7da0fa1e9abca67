"""Large-chunk test-time training: weights that are learned from keys and values, chunk by chunk,
and read by queries.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.choices import choose, note
from jaxlm.kernels.fast_weight_chunk import blocks, pallas_gpu, pallas_tpu, reference, xla
from jaxlm.kernels.fast_weight_chunk.rule import (
  MATRICES,
  Causal,
  FastWeights,
  Item,
  Rule,
  initial_state,
)
from jaxlm.kernels.platform import target_device_kind

IMPLEMENTATIONS = ("xla", "reference", "pallas", "pallas_gpu")
KERNELS = {"pallas": pallas_tpu.form, "pallas_gpu": pallas_gpu.form}
PLAIN = Rule()  # gradient descent, SwiGLU, normalised in place


def fast_weight_chunk(
  weights,
  q_BNTH,
  k_BNTH,
  v_BNTH,
  eta,
  beta_BNT=None,
  *,
  schedule,
  rule=PLAIN,
  segment_ids_BT=None,
  state=None,
  implementation=None,
  spec=None,
):
  """W <- norm(W + U(sum_t eta_t grad <f_W(k_t), v_t>)) once per chunk; o_t = f_W(q_t). Returns
  (o_BNTH, FastWeights).

  weights: 'swiglu' (w0_BNFH, w1_BNHF, w2_BNFH), 'linear' (w_BNHH,); float32 (or float64), as the
  whole state is.
  eta: one (B, N, T, E) array per matrix, float32, E = 1, or one rate per channel of what it
  multiplies: k for w0 and
    w2 (E = H), the hidden layer for w1 (E = F).
  beta_BNT: momentum of each token in [0, 1]; None: no momentum.
  schedule: `Causal(chunk)`, or a sequence of `Item`s, run in order with update before apply. See
  `bidirectional`,
    `view_synthesis`, `interleaved_video`. The outputs of a listed schedule are those of its
    applying items, one behind the
    other in their order, as released: one per token and in place if the applied ranges cover the
    sequence once and in order; a token that two items apply to has two outputs, one that none
    applies to has none.
  segment_ids_BT: int32, causal only, 0 is padding. Given: fast weights start again with every
  document and padding
    does not teach. None: one state runs through the whole row whatever it holds, as the official
    code does.
  state: continue from here instead of from `weights` (listed schedules).
  implementation: None, "xla", "reference", "pallas" (TPU kernels: the inner gradient and the reading
  of a tile of tokens stay on chip, forward and backward), "pallas_gpu" (Hopper: the products that
  read the tokens are a kernel, the rest XLA's; never run on a device, hence never the default). None
  takes "pallas" where it is supported
  and blocks.py says that it is faster.
  spec: PartitionSpec of (B, N, T) under the context mesh. An axis on T splits the tokens *within*
  each chunk and sums
    the steps over it; B and N need no communication.

  Differentiable in everything but segment ids, in reverse mode; tested are first derivatives
  (against finite differences and the definition), not higher ones. Memory of the gradient: one
  chunk of (T, F) work arrays, and the weights at each chunk's start.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise NotImplementedError(
      f"fast_weight_chunk has no implementation {implementation!r}; it has {', '.join(IMPLEMENTATIONS)}"
    )
  _check(weights, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, rule)
  weights, eta = tuple(weights), tuple(eta)
  if implementation == "reference":
    note("fast_weight_chunk", "reference", {"q": q_BNTH, "w": weights[0]}, named=True)
  if isinstance(schedule, Causal):
    if state is not None:
      raise ValueError(
        "a causal schedule starts from `weights`; to continue a sequence use accumulate and apply_update"
      )
    if implementation == "reference":
      return reference.causal(
        rule, weights, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, schedule, segment_ids_BT
      )
    kernel = _kernel(rule, weights, q_BNTH, eta, schedule.chunk, implementation, spec)
    return _causal(
      rule,
      weights,
      q_BNTH,
      k_BNTH,
      v_BNTH,
      eta,
      beta_BNT,
      schedule.chunk,
      segment_ids_BT,
      spec,
      kernel,
    )
  if segment_ids_BT is not None:
    raise ValueError(
      "segment_ids_BT needs schedule=Causal(...): a listed schedule says itself which tokens belong together"
    )
  items = _checked_items(schedule, q_BNTH.shape[2])
  state = initial_state(rule, weights, momentum=beta_BNT is not None) if state is None else state
  if implementation == "reference":
    return reference.fast_weight_chunk(rule, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items)
  most = max((stop - start for start, stop, *_ in items), default=1)
  kernel = _kernel(rule, weights, q_BNTH, eta, most, implementation, spec)
  if kernel is None:
    return xla.listed(xla.form(rule), state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items)
  return _listed(kernel(rule), state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items, spec)


def _kernel(rule, weights, q_BNTH, eta, most: int, implementation, spec):
  """The form of the kernels that are the choice, or None; refused where named and not supported."""
  F, H = weights[0].shape[-2:]
  name = choose(
    "fast_weight_chunk",
    implementation,
    IMPLEMENTATIONS,
    {"q": q_BNTH, "w": weights[0]},
    preferred=blocks.prefers_pallas(target_device_kind(), H, F),
    reason=lambda: pallas_tpu.supports(rule, q_BNTH, F, most, eta, spec),
    gpu_reason=lambda: pallas_gpu.supports(rule, q_BNTH, F, eta, spec),
  )
  return KERNELS.get(name)


def _listed(form, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items, spec):
  """`xla.listed` with the kernels; on a mesh every device has its rows and heads."""

  def local(state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT):
    return xla.listed(form, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items)

  args = (state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT)
  if jax.sharding.get_abstract_mesh().size <= 1:
    return local(*args)
  place = _rows_and_heads(spec, q_BNTH.shape[:2])
  return jax.shard_map(local, in_specs=place, out_specs=place, check_vma=False)(*args)


def _rows_and_heads(spec, shape):
  """Where rows and heads lie; a lone row (initialisation) is everyone's."""
  mesh, axes = jax.sharding.get_abstract_mesh(), (tuple(spec or ()) + (None, None))[:2]
  return P(*(None if n % _axis_size(mesh, part) else part for n, part in zip(shape, axes)))


def cannot_split(chunk: int, num_heads: int, spec) -> str | None:
  """Why a causal schedule cannot be split over the context mesh as `spec` says, with the remedy;
  None where it can.
  """
  axis = _sequence_axis(spec)
  if axis is None:
    return None
  mesh, heads = jax.sharding.get_abstract_mesh(), spec[1]
  size, ways = mesh.shape[axis], _axis_size(mesh, heads)
  if chunk % size:
    return (
      f"chunk {chunk} is not a multiple of the {size} devices of mesh axis {axis!r} that share it; "
      f"use chunk {-(-chunk // size) * size} or mesh.{axis}=1"
    )
  if num_heads % ways:
    return (
      f"{num_heads} fast-weight heads do not divide over the {ways} devices of mesh axis {heads!r}; "
      f"use mesh.{heads}=1 or a multiple"
    )
  return None


def accumulate(rule: Rule, weights, k_BNTH, v_BNTH, eta):
  """sum_t eta_t grad <f_W(k_t), v_t>: the step of a chunk, or of any part of one (the parts add
  up).
  """
  return xla.step(rule, weights, k_BNTH, v_BNTH, eta)


def bidirectional(length: int) -> tuple[Item, ...]:
  """Learn everything, then read everything."""
  return (Item(0, length, True, True),)


def view_synthesis(num_input_tokens: int, length: int) -> tuple[Item, ...]:
  """Learn the input views once; inputs and targets read the learned weights.

  Targets never teach.
  """
  return (Item(0, num_input_tokens, True, False), Item(0, length, False, True))


def interleaved_video(chunk: int, num_repeats: int, num_chunks: int) -> tuple[Item, ...]:
  """[noise_1 x R, clean_1, noise_2 x R, ..., noise_K x R]: learn each clean chunk, then read it and
  the noise after it.
  """
  for what, value in (("chunk", chunk), ("num_repeats", num_repeats), ("num_chunks", num_chunks)):
    if value < 1:
      raise ValueError(f"{what} = {value} of the video schedule is not positive")
  noise, period = chunk * num_repeats, chunk * (num_repeats + 1)
  items = [Item(0, noise, False, True)]
  for start in range(noise, noise + period * (num_chunks - 1), period):
    items += [Item(start, start + chunk, True, False), Item(start, start + period, False, True)]
  return tuple(items)


def _causal(rule, weights, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, chunk, ids_BT, spec, kernel):
  count = max(0, -(-q_BNTH.shape[2] // chunk) - 1)  # chunks that are learned; the rest is only read
  last_BC = (
    None
    if ids_BT is None
    else ids_BT[:, chunk - 1 : max(count, 1) * chunk : chunk]
    if count
    else ids_BT[:, :1]
  )
  tokens = xla.Tokens(q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, ids_BT, last_BC)
  axis = _sequence_axis(spec)
  if why := cannot_split(chunk, weights[0].shape[1], spec):
    raise ValueError(why)
  form = (kernel or xla.form)(rule)
  if axis is None:
    if kernel and jax.sharding.get_abstract_mesh().size > 1:
      return _by_heads(form, chunk, count, weights, tokens, spec)
    return xla.causal(form, chunk, count, None, weights, tokens)
  return _sharded(form, chunk, count, weights, tokens, spec, axis, check_vma=not kernel)


def _by_heads(form, chunk, count, weights, tokens, spec):
  """`xla.causal` with the kernels under shard_map, every device its rows and heads."""
  place = _rows_and_heads(spec, weights[0].shape[:2])
  rows = P(place[0])
  specs = xla.Tokens(*([place] * 5), rows, rows)
  specs = xla.Tokens(*(None if x is None else s for x, s in zip(tokens, specs)))
  return jax.shard_map(
    lambda weights, tokens: xla.causal(form, chunk, count, None, weights, tokens),
    in_specs=(place, specs),
    out_specs=place,
    check_vma=False,
  )(weights, tokens)


def _sharded(form, chunk, count, weights, tokens, spec, axis, check_vma):
  """`xla.causal` under shard_map, the tokens of every chunk split over mesh axis `axis`."""
  mesh = jax.sharding.get_abstract_mesh()
  batch, heads = (tuple(spec) + (None, None))[:2]
  size = mesh.shape[axis]
  if weights[0].shape[0] % _axis_size(mesh, batch):
    batch = None  # a lone row (initialisation) is computed by everyone
  length, share = tokens.q_BNTH.shape[2], chunk // size
  pad = (count + 1) * chunk - length  # the last chunk is only read: its padding teaches nobody
  by_token, last_BC = tokens._replace(last_BC=None), tokens.last_BC

  def axis_of(x):
    return 1 if jnp.issubdtype(x.dtype, jnp.integer) else 2

  def chunked(x):
    """(..., T, ...) to (..., chunks, chunk, ...), so that every device gets its share of every
    chunk.
    """
    at = axis_of(x)
    x = jnp.pad(x, [(0, pad if i == at else 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:at], count + 1, chunk, *x.shape[at + 1 :])

  def local(weights, by_token, last_BC):
    def flat(x):
      return x.reshape(*x.shape[: axis_of(x)], (count + 1) * share, *x.shape[axis_of(x) + 2 :])

    o_BNTH, state = xla.causal(
      form, share, count, axis, weights, jax.tree.map(flat, by_token)._replace(last_BC=last_BC)
    )
    return o_BNTH.reshape(*o_BNTH.shape[:2], count + 1, share, -1), state

  head, row, token = P(batch, heads), P(batch, None, axis), P(batch, heads, None, axis)
  momentum = tokens.beta_BNT is not None
  state_specs = FastWeights(
    *(
      (head,) * len(weights) if there else None
      for there in (True, form.rule.prenorm, momentum, True)
    )
  )
  o_BNCTH, state = jax.shard_map(
    local,
    out_specs=(token, state_specs),
    in_specs=(
      jax.tree.map(lambda _: head, weights),
      jax.tree.map(lambda x: row if axis_of(x) == 1 else token, by_token),
      None if last_BC is None else P(batch),
    ),
    check_vma=check_vma,
  )(weights, jax.tree.map(chunked, by_token), last_BC)
  return o_BNCTH.reshape(*o_BNCTH.shape[:2], (count + 1) * chunk, -1)[:, :, :length], state


def _sequence_axis(spec):
  """The mesh axis that splits T, or None where nothing does."""
  axis = spec[2] if spec is not None and len(spec) > 2 else None
  axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
  mesh = jax.sharding.get_abstract_mesh()
  if axis is None or mesh.size <= 1 or mesh.shape[axis] == 1:
    return None
  return axis


def _axis_size(mesh, axes):
  size = 1
  for axis in axes if isinstance(axes, tuple) else (axes,):
    size *= mesh.shape[axis] if axis is not None else 1
  return size


def _checked_items(schedule, length):
  items = tuple(Item(*item) for item in schedule)
  for index, item in enumerate(items):
    if not 0 <= item.start < item.stop <= length:
      raise ValueError(
        f"schedule item {index} covers tokens {item.start}..{item.stop} of a sequence of {length}; "
        f"0 <= start < stop <= {length} is needed"
      )
  return items


def _check(weights, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, rule):
  if rule.network not in MATRICES:
    raise ValueError(
      f"rule.network = {rule.network!r}: no such fast weights; known: {', '.join(MATRICES)}"
    )
  count = MATRICES[rule.network]
  if len(weights) != count or len(eta) != count:
    raise ValueError(
      f"a {rule.network} fast weight has {count} matrices and rates, got {len(weights)} and {len(eta)}"
    )
  B, N, T, H = q_BNTH.shape
  want = (
    [(B, N, H, H)]
    if count == 1
    else [
      (B, N, w, h)
      for w, h in ((weights[0].shape[2], H), (H, weights[0].shape[2]), (weights[0].shape[2], H))
    ]
  )
  for index, (weight, shape) in enumerate(zip(weights, want)):
    if weight.shape != shape:
      raise ValueError(
        f"fast weight {index} has shape {weight.shape}, wanted {shape} for queries {q_BNTH.shape}"
      )
  if k_BNTH.shape != (B, N, T, H) or v_BNTH.shape != (B, N, T, H):
    raise ValueError(f"q, k, v must agree: {q_BNTH.shape}, {k_BNTH.shape}, {v_BNTH.shape}")
  for index, rate in enumerate(eta):
    width = weights[0].shape[2] if index == 1 else H
    if rate.shape[:3] != (B, N, T) or rate.shape[3] not in (1, width):
      raise ValueError(
        f"eta {index} has shape {rate.shape}, wanted {(B, N, T)} and 1 or {width} rates per token"
      )
  if beta_BNT is not None and beta_BNT.shape != (B, N, T):
    raise ValueError(f"beta has shape {beta_BNT.shape}, wanted {(B, N, T)}")
