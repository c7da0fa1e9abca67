"""Checks of whole H-Nets: loss and gradients at several chunk capacities, and streaming.

Language models are run at the chunk capacities M (the stored number of chunks), M + 5 and the
stage's whole length: the results must not depend on it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop import hnet
from jaxlm.interop.golden.case import EXACT, Tolerance
from jaxlm.interop.golden.hnet import FORWARD, gradient_tolerance, official_config, segments_of
from jaxlm.layers.chunking import ratio_loss, ratio_sums


def language_model(case):
  """(hnet, language_model): everything inside, loss and gradients, at three chunk capacities."""
  cfg = hnet.read_config(official_config(case))
  table, S = hnet.entries(cfg), cfg.num_chunkings
  params = hnet.import_params(table, case.group("param"), tied=hnet.tied_names(cfg))
  packed = case.config["packed"]
  lift = (lambda v: jnp.asarray(v)[None]) if packed else jnp.asarray
  drop = (lambda v: v[0]) if packed else (lambda v: v)
  ids_BT, targets_BT = lift(case["in/ids"]), lift(case["in/targets"])
  segment_ids_BT = (
    segments_of(case["in/cu_seqlens"]) if packed else jnp.asarray(case["in/mask"]).astype(jnp.int32)
  )
  weight_BT, module = (targets_BT != -100).astype(jnp.float32), cfg.build()
  stored = [
    case[key].shape[-2] if case.has(key := f"out/s{s}_chunk_layer_out") else ids_BT.shape[1]
    for s in range(S)
  ]

  def valid(s, infos):
    """Rows that are real at stage s, by our own count where the file holds none."""
    if packed:
      return None
    if case.has(f"out/s{s}_valid_mask"):
      return case[f"out/s{s}_valid_mask"]
    counts_B = np.asarray(infos[s].valid_BT.sum(axis=1) if s < S else infos[-1].count_B)
    return np.arange(lengths[s])[None] < counts_B[:, None]

  def compare_stage(s, sown, infos, stored_length):
    """Rows of stage s: its first `stored_length` positions."""

    def cut(v):
      return drop(v)[..., :stored_length, :] if v.ndim == 3 else drop(v)[..., :stored_length]

    info, where = infos[s], valid(s, infos)
    p_BT = info.p_BT
    case.compare(
      f"out/s{s}_boundary_prob",
      cut(jnp.stack([1 - p_BT, p_BT], axis=-1)) * _mask(where),
      FORWARD,
      where=where,
    )
    case.compare(f"out/s{s}_boundary_mask", cut(info.boundary_BT), EXACT)
    case.compare(
      f"out/s{s}_selected_probs", cut(info.confidence_BT[..., None]), FORWARD, where=where
    )
    boundaries, probability, count = ratio_sums(info)
    case.compare(f"out/s{s}_fraction_F", boundaries / count, FORWARD)
    case.compare(f"out/s{s}_mean_prob_G", probability / count, FORWARD)
    for key, name in (
      ("encoder_out", "encoder_out"),
      ("residual_proj_out", "residual_out"),
      ("dechunk_layer_out", "dechunked"),
      ("decoder_out", "decoder_out"),
    ):
      case.compare(f"out/s{s}_{key}", cut(sown[name]), FORWARD, where=where)
    rows = sown["chunks"]
    if case.has(f"out/s{s}_chunk_layer_out"):
      have = case[f"out/s{s}_chunk_layer_out"].shape[-2]
      case.compare(
        f"out/s{s}_chunk_layer_out", drop(rows)[..., :have, :], FORWARD, where=valid(s + 1, infos)
      )

  def loss(params, capacities):
    (logits_BTV, infos, _), state = module.apply(
      {"params": params},
      ids_BT,
      segment_ids_BT,
      capacities=capacities,
      method="run",
      mutable="intermediates",
    )
    log_prob_BT = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BTV), jnp.maximum(targets_BT, 0)[..., None], -1
    )[..., 0]
    ce = -jnp.sum(log_prob_BT * weight_BT) / jnp.sum(weight_BT)
    ratios = [
      ratio_loss(*ratio_sums(info), target)
      for info, target in zip(infos, case.config["ratio_targets"])
    ]
    return ce + case.config["alpha"] * sum(ratios), (
      logits_BTV,
      ce,
      ratios,
      infos,
      state["intermediates"],
    )

  lengths = [ids_BT.shape[1], *stored]
  step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  for capacities in dict.fromkeys(
    (tuple(stored), tuple(m + 5 for m in stored), (ids_BT.shape[1],) * S)
  ):
    (value, (logits_BTV, ce, ratios, infos, sown)), grads = step(params, capacities)
    case.compare("out/logits", drop(logits_BTV), FORWARD, where=None if packed else case["in/mask"])
    case.compare("out/ce", ce, FORWARD)
    case.compare("out/loss", value, FORWARD)
    inside = sown["backbone"]
    for s in range(S):
      case.compare(f"out/s{s}_ratio_loss", ratios[s], FORWARD)
      compare_stage(
        s, {k: v[0] for k, v in inside.items() if isinstance(v, tuple)}, infos, lengths[s]
      )
      inside = inside["inner"]
    main = drop(inside["main_out"][0])[..., : lengths[S], :]
    case.compare(f"out/s{S}_main_out", main, FORWARD, where=valid(S, infos))
    for name, grad in hnet.export_params(table, grads).items():
      case.compare(f"grad/{name}", grad, gradient_tolerance(name))
  for s in range(S):
    if f"out/s{s}_ratio_loss_including_padding" in case:
      case.skip(f"out/s{s}_ratio_loss_including_padding", "depends on the content of invalid rows")
    if not packed:
      case.compare(f"out/s{s}_valid_mask", infos[s].valid_BT[:, : lengths[s]], EXACT)
  if not packed:
    count_B = infos[-1].count_B
    case.compare(
      f"out/s{S}_valid_mask", np.arange(lengths[S])[None] < np.asarray(count_B)[:, None], EXACT
    )


def _mask(where):
  return 1 if where is None else jnp.asarray(where)[..., None]


def inference(case):
  """(hnet, inference): the parallel pass; prefill and steps; steps alone; greedy continuation."""
  cfg = hnet.read_config(official_config(case))
  S, module = cfg.num_chunkings, cfg.build()
  params = {
    "params": hnet.import_params(hnet.entries(cfg), case.group("param"), tied=hnet.tied_names(cfg))
  }
  ids_BT, n = jnp.asarray(case["in/ids"]), case.config["prefill"]
  logits_BTV, infos, _ = jax.jit(lambda ids: module.apply(params, ids, method="run"))(ids_BT)
  case.compare("out/logits", logits_BTV, FORWARD)
  for s, info in enumerate(infos):
    count = next(
      (
        case[key].shape[1]
        for name in ("boundary_mask", "boundary_prob", "selected_probs")
        if (key := f"out/s{s}_{name}") in case
      ),
      0,
    )

    def cut(v):
      return v[:, :count]

    case.compare(f"out/s{s}_boundary_prob", cut(jnp.stack([1 - info.p_BT, info.p_BT], -1)), FORWARD)
    case.compare(f"out/s{s}_boundary_mask", cut(info.boundary_BT), EXACT)
    case.compare(f"out/s{s}_selected_probs", cut(info.confidence_BT[..., None]), FORWARD)

  extend = jax.jit(lambda ids, state: module.apply(params, ids, state=state, method="run"))
  greedy = case["out/greedy_ids"] if case.has("out/greedy_ids") else np.zeros(0, np.int32)
  T = ids_BT.shape[1]

  def stream(prefix, prefill):
    state, logits, flags = cfg.init_state(1, T + len(greedy)), [], []
    pieces = ([ids_BT[:, :prefill]] if prefill else []) + [
      ids_BT[:, t : t + 1] for t in range(prefill, T)
    ]
    for piece in pieces:
      new_BTV, infos, state = extend(piece, state)
      logits.append(new_BTV)
      if piece.shape[1] == 1:
        reached = [info.valid_BT[0, 0] for info in infos]
        flags.append(
          [int(info.boundary_BT[0, 0]) if ok else -1 for info, ok in zip(infos, reached)]
        )
    case.compare(f"out/{prefix}_logits", jnp.concatenate(logits, axis=1), FORWARD)
    case.compare(f"out/{prefix}_step_flags", np.asarray(flags, np.int32), EXACT)
    stage, length_B = state.stage, state.length_B
    for s in range(S):
      case.compare(f"out/{prefix}_s{s}_last_hidden_state", stage.router, FORWARD)
      case.compare(f"out/{prefix}_s{s}_last_value", stage.last_BD, FORWARD)
      case.compare(f"out/{prefix}_s{s}_encoder_offset", length_B[0], EXACT)
      stage, length_B = stage.inner, stage.count_B
    case.compare(f"out/{prefix}_s{S}_main_offset", length_B[0], EXACT)
    return new_BTV, state

  stream("scratch", 0)
  logits_BTV, state = stream("prefill", n)
  close = np.flatnonzero(case["out/greedy_top2_gap"] < 1e-3)
  kept = int(close[0]) + 1 if len(close) else len(greedy)  # at a close call the next ids may differ
  ids, gaps = [], []
  for _ in range(len(greedy)):
    top = jax.lax.top_k(logits_BTV[0, -1], 2)[0]
    ids.append(int(jnp.argmax(logits_BTV[0, -1])))
    gaps.append(float(top[0] - top[1]))
    logits_BTV, _, state = extend(jnp.asarray([[ids[-1]]]), state)
  kept -= bool(len(close))
  case.compare_to("out/greedy_ids", np.asarray(ids[:kept], greedy.dtype), greedy[:kept], EXACT)
  # A gap is a difference of two logits, each within FORWARD of its size.
  size = 2 * (1e-5 + 1e-4 * float(np.abs(case["out/logits"]).max()))
  case.compare_to(
    "out/greedy_top2_gap",
    np.asarray(gaps[:kept]),
    case["out/greedy_top2_gap"][:kept],
    Tolerance(atol=size),
  )
