"""Checks of the parts of an H-Net: scan, mixer, router, chunks, stacks.

Tolerances are those of the golden README.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop import hnet
from jaxlm.interop.golden.case import EXACT, Tolerance
from jaxlm.kernels.compact import compact, gather
from jaxlm.kernels.route import route
from jaxlm.kernels.ssd import ssd
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.chunking import dechunk
from jaxlm.layers.isotropic import Isotropic, IsotropicConfig
from jaxlm.layers.layout import Run, height
from jaxlm.layers.mamba2 import Mamba2Config, starts
from jaxlm.layers.mixer import Context
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.rewind import last_valid
from jaxlm.layers.stack import Block

FORWARD = Tolerance(atol=1e-5, rtol_max=1e-4)
GRADIENT = Tolerance(atol=1e-6, rtol_max=1e-3)
SCALARS = Tolerance(atol=1e-6, rtol_max=3e-3)  # of Mamba: few elements, heavy cancellation


def gradient_tolerance(name: str) -> Tolerance:
  return (
    SCALARS if name.split(".")[-1] in ("D", "A_log", "dt_bias") or name in ("A", "D") else GRADIENT
  )


def segments_of(cu_seqlens) -> jax.Array:
  """(1, T) segment ids 1, 2, ... of packed sequences with these boundaries."""
  lengths = np.diff(np.asarray(cu_seqlens))
  if (lengths < 1).any():
    raise ValueError(
      f"cu_seqlens {np.asarray(cu_seqlens).tolist()}: document {int(np.argmax(lengths < 1))} is empty"
    )
  return jnp.asarray(np.repeat(np.arange(1, len(lengths) + 1), lengths)[None], jnp.int32)


def context_of(segment_ids_BT) -> Context:
  index_1T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)[None]
  first_BT = jax.lax.cummax(jnp.where(starts(segment_ids_BT), index_1T, 0), axis=1)
  return Context(segment_ids_BT, index_1T - first_BT)


def plain_context(batch: int, length: int) -> Context:
  return context_of(jnp.ones((batch, length), jnp.int32))


def first_tokens(segment_ids_BT):
  return starts(segment_ids_BT).at[:, 0].set(True)


def ssd_scan(case):
  """(hnet, ssd_scan): with initial and final state; with resets; gradients."""
  cfg, names = case.config, ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")
  inputs = {n: jnp.asarray(case[f"in/{n}"]) for n in names}

  def scan(v, **options):
    dt = v["dt"] + v["dt_bias"][None, None]
    return ssd(
      v["x"],
      jax.nn.softplus(dt) if cfg["dt_softplus"] else dt,
      v["A"],
      v["B"],
      v["C"],
      d_N=v["D"],
      **options,
    )

  def loss(v):
    y, state = scan(v, initial_state_BNHE=v["initial_state"])
    return jnp.sum(case.given("in/G", y) * y) + 0.1 * jnp.sum(state**2), (y, state)

  (value, (y, state)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
  case.compare("out/y", y, FORWARD)
  case.compare("out/final_state", state, FORWARD)
  case.compare("out/loss", value, FORWARD)
  for name in names:
    case.compare(f"grad/{name}", grads[name], gradient_tolerance(name))
  if case.has("out/y_seq_idx_no_initial_state"):
    y, _ = scan(inputs, reset_BT=starts(jnp.asarray(case["in/seq_idx"])))
    case.compare("out/y_seq_idx_no_initial_state", y, FORWARD)


def mamba2(case):
  """(hnet, mamba2): the mixer whole, packed, and as prefill and steps."""
  cfg = case.config
  D = cfg["d_model"]
  mixer = Mamba2Config(
    d_state=cfg["d_state"],
    d_conv=cfg["d_conv"],
    expand=cfg["expand"],
    head_dim=cfg["headdim"],
    num_groups=cfg["ngroups"],
  )
  table = hnet.mamba_entries(mixer, D, "", "")
  params, module = hnet.import_params(table, case.group("param")), mixer.build(D, "float32")
  u_BTD = jnp.asarray(case["in/u"])

  def apply(params, u_BTD, context, state=None):
    return module.apply({"params": params}, u_BTD, context, state)

  def loss(params, u_BTD):
    y_BTD, _ = apply(params, u_BTD, plain_context(*u_BTD.shape[:2]))
    return jnp.sum(case.given("in/G", y_BTD) * y_BTD), y_BTD

  (value, y_BTD), (grads, du_BTD) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
    params, u_BTD
  )
  case.compare("out/y", y_BTD, FORWARD)
  case.compare("out/loss", value, FORWARD)
  case.compare("grad/in_u", du_BTD, GRADIENT)
  for name, grad in hnet.export_params(table, grads).items():
    case.compare(f"grad/{name}", grad, gradient_tolerance(name))
  if case.has("out/y_packed"):
    y_BTD, _ = jax.jit(apply)(
      params, case["in/u_packed"], context_of(jnp.asarray(case["in/seq_idx"]) + 1)
    )
    case.compare("out/y_packed", y_BTD, FORWARD)

  def compare_state(which, state):
    conv_BJF = np.concatenate([state.x_BJF, state.bc_BJF], axis=-1)
    case.compare(f"out/{which}_conv_state", conv_BJF.transpose(0, 2, 1), FORWARD)
    case.compare(f"out/{which}_ssm_state", state.ssm_BNHE, FORWARD)

  B, T, n = *u_BTD.shape[:2], cfg["prefill"]
  state = mixer.init_state(D, B, T, "float32")
  _, state = jax.jit(apply)(params, u_BTD[:, :n], plain_context(B, n), state)
  compare_state("prefill", state)
  step, steps = jax.jit(apply), []
  for t in range(n, T):
    y_BTD, state = step(params, u_BTD[:, t : t + 1], plain_context(B, 1), state)
    steps.append(y_BTD)
  case.compare("out/step_y", jnp.concatenate(steps, axis=1), FORWARD)
  compare_state("final", state)


def routing(case):
  """(hnet, routing): ragged, packed, one step after a prefill, exact ties."""
  D, x_BTD, mask_BT = (
    case.config["d_model"],
    jnp.asarray(case["in/hidden"]),
    jnp.asarray(case["in/mask"]),
  )
  table = hnet.router_entries(D, "", "")
  params = hnet.import_params(table, case.group("param"))

  def decide(params, x_BTD, **options):
    return route(x_BTD, params["w_q"], params["w_k"], **options)

  def loss(params, x_BTD):
    decision = decide(
      params, x_BTD, first_BT=first_tokens(mask_BT.astype(jnp.int32)) & mask_BT, valid_BT=mask_BT
    )
    return (
      jnp.sum(case.given("in/G", decision.p_BT) * decision.p_BT)
      + jnp.sum(case.given("in/G2", decision.confidence_BT) * decision.confidence_BT)
    ), decision

  def compare(prefix, decision, where=None, pick=lambda v: v):
    pair = jnp.stack([1 - decision.p_BT, decision.p_BT], axis=-1)
    case.compare(f"out/{prefix}boundary_prob", pick(pair), FORWARD, where=where)
    case.compare(f"out/{prefix}boundary_mask", pick(decision.boundary_BT), EXACT)
    if f"out/{prefix}selected_probs" in case:
      case.compare(
        f"out/{prefix}selected_probs", pick(decision.confidence_BT[..., None]), FORWARD, where=where
      )

  (value, decision), (grads, dx_BTD) = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  )(params, x_BTD)
  compare("", decision, where=case["in/mask"])
  case.compare("out/loss", value, FORWARD)
  for name, grad in hnet.export_params(table, grads).items():
    case.compare(f"grad/{name}", grad, GRADIENT)
  case.compare("grad/in_hidden", dx_BTD, GRADIENT)

  segment_ids_BT = segments_of(case["in/cu_seqlens"])
  packed = decide(
    params,
    jnp.asarray(case["in/hidden_packed"])[None],
    first_BT=first_tokens(segment_ids_BT),
    valid_BT=segment_ids_BT != 0,
  )
  compare("packed_", packed, pick=lambda v: v[0])

  row_BTD, row_BT = x_BTD[:1], mask_BT[:1]
  last_BD = last_valid(row_BTD, row_BT, jnp.zeros((1, D)))
  case.compare("out/state_last_hidden_state", last_BD, FORWARD)
  case.compare("out/state_has_seen_tokens", jnp.any(row_BT, axis=1), EXACT)
  none_BT, all_BT = jnp.zeros((1, 1), bool), jnp.ones((1, 1), bool)
  step = decide(
    params,
    jnp.asarray(case["in/step_hidden"]),
    first_BT=none_BT,
    valid_BT=all_BT,
    previous_BD=last_BD,
  )
  compare("step_", step, pick=lambda v: v[:, 0])

  identity = {"w_q": jnp.eye(D), "w_k": jnp.eye(D)}
  x_BTD = jnp.asarray(case["in/identity_hidden"])
  ones_BT = jnp.ones(x_BTD.shape[:2], bool)
  compare("identity_", decide(identity, x_BTD, first_BT=first_tokens(ones_BT), valid_BT=ones_BT))


def chunk_dechunk(case):
  """(hnet, chunk_dechunk): route, chunk, tanh(x W^T), dechunk, join; padded at three capacities,
  packed, stepped.
  """
  D = case.config["d_model"]
  table = hnet.router_entries(D, "", "")
  params = hnet.import_params(table, case.group("param"), ignore=("inner_W",))
  params["inner_W"] = jnp.asarray(case["param/inner_W"])
  x_BTD, mask_BT = jnp.asarray(case["in/hidden"]), jnp.asarray(case["in/mask"])

  def network(params, x_BTD, segment_ids_BT, capacity, packed):
    decision = route(
      x_BTD,
      params["w_q"],
      params["w_k"],
      first_BT=first_tokens(segment_ids_BT),
      valid_BT=segment_ids_BT != 0,
    )
    slots = compact(decision.boundary_BT, capacity)
    chunks_BCD = gather(x_BTD, slots)
    inner_BCD = jnp.where(
      slots.valid_BC[..., None],
      jnp.tanh(jnp.einsum("bcd,ed->bce", chunks_BCD, params["inner_W"])),
      0,
    )
    reset_BC = starts(gather(segment_ids_BT, slots)) if packed else None
    joined_BTD, _ = dechunk(inner_BCD, decision, slots, reset_BC)
    smoothed_BTD, last_BD = dechunk(inner_BCD, decision, slots, reset_BC, confident=False)
    return joined_BTD + x_BTD, (decision, slots, chunks_BCD, inner_BCD, smoothed_BTD)

  segment_ids_BT = mask_BT.astype(jnp.int32)
  stored = case["out/chunk_mask"].shape[1] if case.has("out/chunk_mask") else x_BTD.shape[1]
  for capacity in (stored, stored + 5, x_BTD.shape[1]):
    if capacity < stored:
      continue

    def loss(params, x_BTD):
      y_BTD, rest = network(params, x_BTD, segment_ids_BT, capacity, False)
      return jnp.sum(case.given("in/G", y_BTD) * y_BTD), (y_BTD, *rest)

    (value, out), (grads, dx_BTD) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
      params, x_BTD
    )
    y_BTD, decision, slots, chunks_BCD, inner_BCD, smoothed_BTD = out

    def cut(v):
      return jnp.pad(v, ((0, 0), (0, max(0, stored - v.shape[1]))) + ((0, 0),) * (v.ndim - 2))[
        :, :stored
      ]

    where = case["in/mask"]
    case.compare(
      "out/boundary_prob", jnp.stack([1 - decision.p_BT, decision.p_BT], -1), FORWARD, where=where
    )
    case.compare("out/boundary_mask", decision.boundary_BT, EXACT)
    case.compare("out/selected_probs", decision.confidence_BT[..., None], FORWARD, where=where)
    case.compare("out/chunked", cut(chunks_BCD), FORWARD)
    case.compare("out/chunk_mask", cut(slots.valid_BC), EXACT)
    case.compare("out/chunk_len", slots.count_B, EXACT)
    case.compare("out/inner", cut(inner_BCD), FORWARD)
    case.compare("out/dechunked", smoothed_BTD, FORWARD, where=where)
    case.compare("out/y", y_BTD, FORWARD, where=where)
    case.compare("out/loss", value, FORWARD)
    theirs = hnet.export_params(table, {k: grads[k] for k in ("w_q", "w_k")}) | {
      "inner_W": grads["inner_W"]
    }
    for name, grad in theirs.items():
      case.compare(f"grad/{name}", grad, GRADIENT)
    case.compare("grad/in_hidden", dx_BTD, GRADIENT)
  case.compare("out/dechunked_bf16_kernel_inputs", smoothed_BTD, Tolerance(atol=1e-2), where=where)

  segment_ids_BT = segments_of(case["in/cu_seqlens"])
  total = (
    case["out/packed_chunked"].shape[0]
    if case.has("out/packed_chunked")
    else segment_ids_BT.shape[1]
  )
  _, (_, slots, chunks_BCD, _, smoothed_BTD) = network(
    params, jnp.asarray(case["in/hidden_packed"])[None], segment_ids_BT, total, True
  )
  case.compare("out/packed_chunked", chunks_BCD[0], FORWARD)
  case.compare("out/packed_dechunked", smoothed_BTD[0], FORWARD)
  counts = np.bincount(
    np.asarray(gather(segment_ids_BT, slots))[0], minlength=len(case["in/cu_seqlens"])
  )[1:]
  case.compare(
    "out/packed_next_cu_seqlens", np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), EXACT
  )
  case.compare("out/packed_next_max_seqlen", np.int32(counts.max()), EXACT)

  # One position at a time, the moving average handed on.
  step = jax.jit(
    lambda chunk_BCD, row, value_BD: dechunk(
      chunk_BCD, row, compact(row.boundary_BT, 1), None, value_BD, confident=False
    )
  )
  out, value_BD, ranks = [], jnp.zeros((1, D)), np.cumsum(np.asarray(decision.boundary_BT[0])) - 1
  for t in range(
    case["out/step_dechunked_row0"].shape[1] if case.has("out/step_dechunked_row0") else 1
  ):
    row = jax.tree.map(lambda v: v[:1, t : t + 1], decision)
    y_BTD, value_BD = step(inner_BCD[:1, max(ranks[t], 0)][:, None], row, value_BD)
    out.append(y_BTD)
  case.compare("out/step_dechunked_row0", jnp.concatenate(out, axis=1), FORWARD)


def transformer_block(case):
  """(hnet, transformer_block): a T block with an incoming residual; mixer and MLP alone; the mixer
  packed.
  """
  cfg = case.config
  window, rotary = cfg["window_size"], cfg["rotary_emb_dim"]
  attention = AttentionConfig(
    cfg["num_heads"],
    position=RoPE(rotary_dim=rotary) if rotary else NoPosition(),
    window=None if window < 0 else window + 1,
  )
  stack = IsotropicConfig((Run("T", 1),), cfg["d_model"], cfg["d_intermediate"], attention)
  case.require(
    "d_ff", stack.mlp.d_ff == cfg["d_ff_rounded"], f"{stack.mlp.d_ff}, wanted {cfg['d_ff_rounded']}"
  )
  table = hnet.layer_entries(stack, stack.runs[0], "", "", None)
  params = hnet.import_params(table, case.group("param"))
  x_BTD, residual_BTD = jnp.asarray(case["in/x"]), jnp.asarray(case["in/residual"])
  module = Block(stack.block(stack.runs[0]), attention, mlp_follows=True)
  context = plain_context(*x_BTD.shape[:2])

  def loss(params, x_BTD, residual_BTD):
    # The block adds what came before to its stream first.
    (_, _), sown = module.apply(
      {"params": params}, x_BTD + residual_BTD, context, None, mutable="intermediates"
    )
    y_BTD, r_BTD = branch_and_residual(sown["intermediates"])
    return jnp.sum(case.given("in/G", y_BTD) * y_BTD) + jnp.sum(
      case.given("in/G2", r_BTD) * r_BTD
    ), (y_BTD, r_BTD)

  (value, (y_BTD, r_BTD)), (grads, dx, dr) = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  )(params, x_BTD, residual_BTD)
  case.compare("out/y", y_BTD, FORWARD)
  case.compare("out/residual", r_BTD, FORWARD)
  case.compare("out/loss", value, FORWARD)
  for name, grad in hnet.export_params(table, grads).items():
    case.compare(f"grad/{name}", grad, GRADIENT)
  case.compare("grad/in_x", dx, GRADIENT)
  case.compare("grad/in_residual", dr, GRADIENT)
  mixer, mlp = attention.build(stack.d_model, "float32"), stack.mlp.build(stack.d_model, "float32")
  case.compare(
    "out/mixer_only", mixer.apply({"params": params["mixer"]}, x_BTD, context, None)[0], FORWARD
  )
  case.compare("out/mlp_only", mlp.apply({"params": params["mlp"]}, x_BTD), FORWARD)
  packed = context_of(segments_of(case["in/cu_seqlens"]))
  y_BTD, _ = mixer.apply(
    {"params": params["mixer"]}, jnp.asarray(case["in/x_packed"])[None], packed, None
  )
  case.compare("out/mixer_packed", y_BTD[0], FORWARD)


def branch_and_residual(sown):
  """What the official layer returns: its last branch, and the stream that this is to be added to."""
  branch = sown["mlp_out" if "mlp_out" in sown else "attn_out"][0]
  return branch, sown["resid"][0] - branch


def official_config(case) -> dict:
  return {k: v for k, v in case.config.items() if k in hnet.FIELDS}


def isotropic(case):
  """(hnet, isotropic): a stack of several kinds of layers, each layer's branch and stream, packed."""
  cfg = hnet.read_config(official_config(case))
  stack = cfg.stack(0, cfg.runs(0)[0])
  case.compare("out/height", np.int32(height(stack.runs)), EXACT)
  table = hnet.stack_entries(stack, "", "")
  params = hnet.import_params(table, case.group("param"))
  module, x_BTD = Isotropic(stack), jnp.asarray(case["in/x"])

  def loss(params, x_BTD):
    (y_BTD, _), sown = module.apply(
      {"params": params}, x_BTD, plain_context(*x_BTD.shape[:2]), mutable="intermediates"
    )
    return jnp.sum(case.given("in/G", y_BTD) * y_BTD), (y_BTD, sown["intermediates"])

  (value, (y_BTD, sown)), (grads, dx_BTD) = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  )(params, x_BTD)
  case.compare("out/y", y_BTD, FORWARD)
  case.compare("out/loss", value, FORWARD)
  layers = [(r, l) for r, run in enumerate(stack.runs) for l in range(run.count)]
  for i, (r, l) in enumerate(layers):
    for name, x in zip(("out", "residual"), branch_and_residual(sown[f"run_{r}"])):
      case.compare(f"out/layer{i}_{name}", x[l], FORWARD)
  for name, grad in hnet.export_params(table, grads).items():
    case.compare(f"grad/{name}", grad, gradient_tolerance(name))
  case.compare("grad/in_x", dx_BTD, GRADIENT)
  packed = context_of(segments_of(case["in/cu_seqlens"]))
  y_BTD, _ = module.apply({"params": params}, jnp.asarray(case["in/x_packed"])[None], packed)
  case.compare("out/y_packed", y_BTD[0], FORWARD)
