"""Checks of the LaCT arrays: operators, layer, language model, view synthesis, video.

Tolerances are those of the golden README: max |a - b| <= rtol_max * max |b| per array.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop.golden.case import Tolerance
from jaxlm.interop.golden.decoder import before_layers, shifted
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.interop.huggingface.table import Table
from jaxlm.interop.lact import LACT_LM, mixer_rules, mixer_sizes, nvs_table, read_mixer
from jaxlm.kernels.fast_weight_chunk import (
  Causal,
  Rule,
  accumulate,
  apply_update,
  bidirectional,
  fast_weight_chunk,
  initial_state,
  interleaved_video,
  read,
)
from jaxlm.kernels.newton_schulz import LANGUAGE, coefficients, newton_schulz
from jaxlm.layers.fast_weights import MemoryState, extend
from jaxlm.layers.lact_video import chunk_attention
from jaxlm.layers.mixer import Context
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.lact_nvs import NVSConfig, Views, rays

NAMES = ("w0", "w1", "w2", "q", "k", "v", "lr0", "lr1", "lr2")


def relative(value):
  return Tolerance(rtol_max=value)


def newton_schulz_batches(case):
  """(system lact, kind newton_schulz): both coefficient sets, float32 and bfloat16, singular
  values.
  """
  for i in range(len(case.config["shapes"])):
    g_BMN = case[f"in/G{i}"]
    views = tuple(case.config["nvs_coefficients"])
    sets = {"lm": LANGUAGE, "nvs": (views,) * 5, "nvs_f32_steps3": (views,) * 3}
    for name in ("lm", "nvs"):
      case.compare(f"out/{name}_f32_{i}", newton_schulz(g_BMN, sets[name]), relative(1e-5))
      case.compare(
        f"out/{name}_bf16_{i}", newton_schulz(g_BMN, sets[name], dtype="bfloat16"), relative(1e-1)
      )
    case.compare(
      f"out/nvs_f32_steps3_{i}", newton_schulz(g_BMN, sets["nvs_f32_steps3"]), relative(1e-5)
    )

    def values(x):
      return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)

    case.compare(f"out/svals_in_{i}", values(g_BMN), relative(1e-5))
    case.compare(f"out/svals_lm_f32_{i}", values(newton_schulz(g_BMN, LANGUAGE)), relative(1e-5))


def op(case):
  """(lact, op): the causal language operator."""
  cfg = case.config
  casts = cfg["official_casts"]
  rule = Rule(
    muon=LANGUAGE if cfg["use_muon"] else None,
    muon_dtype="bfloat16" if casts else None,
    prenorm=cfg["variant"] == "prenorm",
    fused=cfg["fused_semantics"],
    dtype="bfloat16" if casts else None,
  )
  names = NAMES + (("momentum",) if cfg["use_momentum"] else ())
  _operator(case, rule, Causal(cfg["chunk_size"]), names, bfloat16=casts)
  _streamed(case, rule, cfg["chunk_size"], "momentum" in names, bfloat16=casts)


def _streamed(case, rule, chunk, momentum, *, bfloat16):
  """The same outputs one token at a time, and as two pieces whose cut is no chunk's end: running
  sums, no second look.
  """
  with jax.enable_x64(case["in/q"].dtype == np.float64):
    a = {name: jnp.asarray(x)[:, None] for name, x in case.group("in").items()}
    low = (lambda x: x.astype(jnp.bfloat16)) if bfloat16 else (lambda x: x)
    weights, T = tuple(a[f"w{i}"] for i in range(3)), a["q"].shape[2]

    def zeros(wanted):
      return jax.tree.map(jnp.zeros_like, weights) if wanted else None

    B = weights[0].shape[0]
    state = MemoryState(
      zeros(True),
      zeros(rule.prenorm),
      zeros(momentum),
      zeros(True),
      jnp.zeros((B, 1), weights[0].dtype),
      jnp.zeros(B, jnp.int32),
    )

    @jax.jit
    def more(part, state):
      eta = tuple(part[f"lr{i}"] for i in range(3))
      beta_BNT = part["momentum"][..., 0] if momentum else None
      return extend(
        rule,
        chunk,
        weights,
        low(part["q"]),
        low(part["k"]),
        low(part["v"]),
        eta,
        beta_BNT,
        state,
        jnp.ones((B, part["q"].shape[2]), bool),
      )

    tokens = {name: a[name] for name in (*NAMES[3:], *(("momentum",) if momentum else ()))}
    whole, _ = jax.jit(
      lambda a: fast_weight_chunk(
        weights,
        low(a["q"]),
        low(a["k"]),
        low(a["v"]),
        tuple(a[f"lr{i}"] for i in range(3)),
        a["momentum"][..., 0] if momentum else None,
        schedule=Causal(chunk),
        rule=rule,
      )
    )(tokens)
    for name, ends in (
      ("one by one", range(1, T + 1)),
      ("in two pieces", (min(chunk + 1, T - 1), T)),
    ):
      parts, at, now = [], 0, state
      for end in ends:
        o, now = more({k: x[:, :, at:end] for k, x in tokens.items()}, now)
        parts.append(np.asarray(o, np.float64))
        at = end
      limit = 1e-11 if a["q"].dtype == jnp.float64 else 1e-4 if rule.muon else 1e-5
      if bfloat16:  # sums in another order, rounded to 8 bits; Newton-Schulz in bfloat16 amplifies that (spec 2.9)
        limit = 0.5 if rule.muon else 4e-2
      case.compare_to(
        f"streaming {name}",
        np.concatenate(parts, 2),
        np.asarray(whole, np.float64),
        relative(limit),
      )


def bidirectional_op(case):
  """(lact, bidirectional_op): learn all, read all; also the published form with its defect
  (docs/specs/lact.md, section 9).
  """
  cfg = case.config
  rule = Rule(muon=LANGUAGE if cfg["use_muon"] else None)
  if not cfg["use_muon"] or cfg["muon_semantics"] == "corrected":
    _operator(case, rule, bidirectional(case["in/q"].shape[1]), NAMES)
    return

  def as_published(weights, q, k, v, eta, beta, *, schedule, rule):
    """W <- NS(step) + step: the initial weights survive in the step and the norms only.

    Shown, not offered.
    """
    state = initial_state(rule, weights, momentum=False)
    delta = accumulate(rule, weights, k, v, eta)
    lost = state._replace(current=delta)
    state = apply_update(rule, lost, delta)
    return read(rule, state.current, q), state

  _operator(case, rule, None, NAMES, run_op=as_published)


def nvs_op(case):
  """(lact, nvs_op): update/apply lists; weights are stored transposed and norms are detached."""
  cfg = case.config
  casts = cfg["official_casts"]
  rule = Rule(
    muon=coefficients("views", cfg["muon_update_steps"]),
    muon_dtype="bfloat16" if casts else None,
    detach_norms=True,
  )
  _operator(
    case, rule, cfg["op_order"], NAMES, transposed=True, bfloat16=False, muon_bfloat16=casts
  )


def video_op(case):
  """(lact, video_op): the interleaved noise/clean schedule and its chunk attention."""
  cfg = case.config
  schedule = interleaved_video(cfg["chunk"], cfg["noise_repeats"], cfg["num_chunks"])
  _operator(case, Rule(muon=coefficients("views") if cfg["use_muon"] else None), schedule, NAMES)
  q, k, v = (jnp.asarray(case[f"in/attn_{x}"]) for x in "qkv")
  o = chunk_attention(
    q, k, v, chunk=cfg["chunk"], num_repeats=cfg["noise_repeats"], num_cached=cfg["kv_cache_size"]
  )
  case.compare("out/attn_o", o, relative(1e-5))


def layer(case):
  """(lact, layer): the whole mixer, with what enters and leaves its attention and its memory."""
  cfg = case.config
  x_BTD = jnp.asarray(case["in/x"])
  mixer = read_mixer(Fields(cfg), cfg["hidden_size"]).with_position(RoPE(theta=cfg["rope_theta"]))
  table = Table(tuple(mixer_rules(mixer, "", "")), mixer_sizes(mixer, cfg["hidden_size"]), 1)
  params = table.import_params(case.group("param"), np.float32)
  ids_BT = (
    jnp.asarray(case["in/attention_mask"])
    if "in/attention_mask" in case
    else jnp.ones(x_BTD.shape[:2], jnp.int32)
  )
  positions_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1])[None], ids_BT.shape)
  context = Context(ids_BT, positions_BT)
  module = mixer.build(cfg["hidden_size"], "float32")

  @jax.jit
  def run(params, x_BTD, cotangent):
    def forward(params, x_BTD):
      (y_BTD, _), sown = module.apply({"params": params}, x_BTD, context, mutable=["intermediates"])
      return y_BTD, sown["intermediates"]

    y_BTD, vjp, sown = jax.vjp(forward, params, x_BTD, has_aux=True)
    return y_BTD, sown, vjp(cotangent)

  y_BTD, sown, (grads, x_grad) = jax.device_get(
    run(params, x_BTD, jnp.asarray(case.given("in/cotangent", x_BTD, ("grad/",))))
  )
  muon = cfg["use_muon"]
  out = relative(1e-4 if muon else 1e-5)
  valid = np.asarray(ids_BT) > 0
  case.compare("out/o", y_BTD, out)

  def folded(x):
    return x.reshape(-1, *x.shape[2:])

  weights, q, k, v, eta, beta = sown["fast"]["arguments"][0]
  mine = {
    "attn_q_rot": sown["q"][0],
    "attn_k_rot": sown["k"][0],
    "attn_o": sown["attended"][0],
    "ttt_q": folded(q),
    "ttt_k": folded(k),
    "ttt_v": folded(v),
    "ttt_o": folded(sown["remembered"][0]),
  }
  mine |= {f"ttt_w{i}": folded(w) for i, w in enumerate(weights)} | {
    f"ttt_lr{i}": folded(e) for i, e in enumerate(eta)
  }
  if beta is not None:
    mine["ttt_momentum"] = folded(beta)[..., None]
  for name, value in mine.items():
    if f"out/{name}" in case:
      case.compare(f"out/{name}", value, out, where=valid if name.startswith("attn") else None)
  case.compare("grad_in/x", x_grad, relative(5e-3 if muon else 1e-4))
  _gradients(case, table.export_params(grads), 5e-3 if muon else 1e-4)

  # Streaming: a piece whose cut is no chunk's end, then the rest.
  extend_layer = jax.jit(
    lambda x, ids, positions, state: module.apply(
      {"params": params}, x, Context(ids, positions, streaming=True), state
    )
  )
  state, parts = (
    mixer.init_state(cfg["hidden_size"], x_BTD.shape[0], x_BTD.shape[1], jnp.float32),
    [],
  )
  for piece in (slice(None, cfg["lact_chunk_size"] + 1), slice(cfg["lact_chunk_size"] + 1, None)):
    y_part, state = extend_layer(x_BTD[:, piece], ids_BT[:, piece], positions_BT[:, piece], state)
    parts.append(y_part)
  case.compare_to(
    "streaming in two pieces",
    np.concatenate(parts, 1),
    y_BTD,
    relative(1e-3 if muon else 1e-4),
    where=valid,
  )


def language_model(case):
  """(lact, language_model): logits, hidden states, loss per token, all gradients; streaming equals
  the whole.
  """
  fields = Fields(
    {
      k: v
      for k, v in case.config.items()
      if k not in ("system", "kind", "module", "B", "L", "seed")
    }
  )
  cfg = LACT_LM.read(fields, None)
  table = LACT_LM.table(cfg)
  params, model = table.import_params(case.group("param"), np.float32), cfg.build()
  tokens_BT = jnp.asarray(case["in/input_ids"])
  targets_BT, weights_BT = shifted(case["in/labels"])

  @jax.jit
  def run(params):
    def loss(params):
      logits_BTV, sown = model.apply({"params": params}, tokens_BT, mutable=["intermediates"])
      score = model.apply({"params": params}, tokens_BT, targets_BT, method="score")
      value = -jnp.sum(score.log_prob_BT * weights_BT) / jnp.sum(weights_BT)
      return value, (logits_BTV, before_layers(sown["intermediates"], cfg), -score.log_prob_BT)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, (logits_BTV, hidden, token_loss_BT)), grads = jax.device_get(run(params))
  muon = case.config["use_muon"]
  out = relative(1e-4 if muon else 1e-5)
  case.compare("out/logits", logits_BTV, out)
  case.compare("out/loss", value, Tolerance(rtol=1e-5))
  for i, h_BTD in enumerate(hidden):
    case.compare(f"out/hidden_{i}", h_BTD, out)
  case.compare(
    "out/token_loss",
    (token_loss_BT * weights_BT)[:, :-1],
    out,
    where=np.asarray(weights_BT)[:, :-1] > 0,
  )
  _gradients(case, table.export_params(grads), 5e-3 if muon else 1e-4)

  # Streaming, which the release does not have: any split must give the same logits.
  T, chunk = tokens_BT.shape[1], case.config["lact_chunk_size"]
  extend = jax.jit(
    lambda tokens, state: model.apply({"params": params}, tokens, state, method="extend")
  )
  for split in sorted({1, chunk - 1, chunk, chunk + 1, 2 * chunk} & set(range(1, T))):
    first, state = extend(tokens_BT[:, :split], cfg.init_state(tokens_BT.shape[0], T))
    second, _ = extend(tokens_BT[:, split:], state)
    case.compare_to(
      f"streaming split at {split}",
      np.concatenate([first, second], 1),
      logits_BTV,
      relative(1e-3 if muon else 1e-4),
    )


def nvs_model(case):
  """(lact, nvs_model): rays, blocks, rendering in one pass and through reconstructed weights, all
  gradients.
  """
  c = case.config
  cfg = NVSConfig(
    d_model=c["dim"],
    num_layers=c["layers"],
    patch=c["patch_size"],
    head_dim=c["attn_head_dim"],
    fast_head_dim=c["ttt_head_dim"],
    expansion=c["ttt_inter_multi"],
    mlp_expansion=c["mlp_inter_multi"],
    muon_steps=c["muon_update_steps"],
    base_rate=c["base_lr"],
  )
  table, model = nvs_table(cfg), cfg.build()
  params = table.import_params(case.group("param"), np.float32)
  given = Views(*(jnp.asarray(case[f"in/{n}"]) for n in ("image", "fxfycxcy_in", "c2w_in")))
  wanted = Views(None, *(jnp.asarray(case[f"in/{n}"]) for n in ("fxfycxcy_target", "c2w_target")))
  size = given.images_BSCYX.shape[-2:]

  @jax.jit
  def run(params):
    def loss(params):
      image, sown = model.apply({"params": params}, given, wanted, mutable=["intermediates"])
      return jnp.mean(jnp.square(image - case.given("in/target_image", image))), (
        image,
        sown["intermediates"]["blocks"]["resid"][0],
      )

    def apply(*args, method):
      return model.apply({"params": params}, *args, method=method)

    state = apply(given, method="reconstruct")
    return (
      jax.value_and_grad(loss, has_aux=True)(params),
      state,
      apply(wanted, state, *size, method="render"),
    )

  ((value, (image, hidden_LBTD)), grads), state, again = jax.device_get(run(params))
  near = relative(1e-4)
  origin, direction = rays(given.intrinsics_BS4, given.poses_BS44, *size)
  for name, x in (
    ("ray_o", origin),
    ("ray_d", direction),
    ("o_cross_d", jnp.cross(origin, direction, axis=2)),
  ):
    case.compare(f"out/{name}_in", x, near)
  case.compare("out/rendering", image, near)
  case.compare("out/rendering_reconstruct_path", again, near)
  case.compare("out/loss_mse", value, near)
  for layer in range(cfg.num_layers):
    case.compare(f"out/block_{layer}", hidden_LBTD[layer], near)
    for j, w in enumerate(state):
      case.compare(f"out/state_{layer}_w{j}", w[layer].reshape(-1, *w.shape[3:]).mT, near)
  for name, grad in table.export_params(grads).items():
    case.compare(f"grad/{name}", grad, relative(5e-3))


def _gradients(case, grads, limit):
  """lr_proj.bias and its like are cancelling sums (docs/specs/lact.md, section 12, trap 9):
  measured against the largest lr_proj gradient.
  """
  sizes = [
    np.abs(case[f"grad/{name}"]).max()
    for name in grads
    if "lr_proj" in name and f"grad/{name}" in case
  ]
  floor = 1e-4 * max(sizes) if case.config["use_muon"] and sizes else 0.0
  for name, value in grads.items():
    tolerance = Tolerance(rtol_max=limit, atol=floor if "lr_proj" in name else 0.0)
    case.compare(f"grad/{name}", value, tolerance)


def _operator(
  case,
  rule,
  schedule,
  names,
  *,
  transposed=False,
  bfloat16=False,
  muon_bfloat16=False,
  run_op=fast_weight_chunk,
):
  """Output, final state and all gradients of one operator case (one head: B' of the file is our B)."""
  double = case["in/q"].dtype == np.float64
  turn = (lambda x: x.mT) if transposed else (lambda x: x)

  def run(arrays):
    a = {name: x[:, None] for name, x in arrays.items()}
    if bfloat16:
      a.update({name: a[name].astype(jnp.bfloat16) for name in "qkv"})
    out, state = run_op(
      tuple(turn(a[n]) for n in ("w0", "w1", "w2")),
      a["q"],
      a["k"],
      a["v"],
      (a["lr0"], a["lr1"], a["lr2"]),
      a["momentum"][..., 0] if "momentum" in a else None,
      schedule=schedule,
      rule=rule,
    )
    return out[:, 0].astype(arrays["q"].dtype), state

  with jax.enable_x64(double):
    arrays = {name: jnp.asarray(case[f"in/{name}"]) for name in names}
    out, vjp, state = jax.vjp(run, arrays, has_aux=True)
    (grads,) = vjp(jnp.asarray(case.given("in/cotangent", out, ("grad/",)), out.dtype))
    out, grads, state = jax.device_get((out, grads, state))

  muon = rule.muon is not None and len(rule.muon) > 0
  out_limit, grad_limit = (1e-4, 1e-3) if muon else (1e-5, 1e-5)
  if double:
    out_limit, grad_limit = (1e-11, 1e-10) if muon else (1e-12, 1e-12)
  if bfloat16:
    out_limit, grad_limit = 2e-2, 4e-2
  if muon_bfloat16:
    out_limit, grad_limit = 1e-1, None
  if case.config["kind"] == "video_op":
    grad_limit = max(grad_limit, 1e-4)

  if bfloat16 and muon:  # chaotic: norms and direction only
    _statistical(case, "out/o", out, cosine=0.9)
    for name in names:
      if case.has(f"grad/{name}"):
        case.require(f"grad/{name}", bool(np.all(np.isfinite(grads[name]))), "not finite")
    return
  case.compare("out/o", out, relative(out_limit))
  for field, trees in (("w", state.current), ("m", state.momentum), ("main", state.master)):
    for index, value in enumerate(trees or ()):
      key = f"out/final_{field}{index}"
      if key in case:
        case.compare(key, turn(value[:, 0]), relative(out_limit))
  for name in names:
    if grad_limit is None and f"grad/{name}" in case:
      case.skip(
        f"grad/{name}", "gradients of bfloat16 Newton-Schulz are not compared (golden README)"
      )
    else:
      case.compare(f"grad/{name}", grads[name], relative(grad_limit or 0.0))


def _statistical(case, key, got, cosine):
  if not case.has(key):
    return
  got, want = np.asarray(got, np.float64).ravel(), np.asarray(case[key], np.float64).ravel()
  size = np.linalg.norm(got) / np.linalg.norm(want)
  align = got @ want / (np.linalg.norm(got) * np.linalg.norm(want))
  case.require(
    key, bool(0.8 < size < 1.25 and align > cosine), f"norm ratio {size:.3f}, cosine {align:.3f}"
  )
