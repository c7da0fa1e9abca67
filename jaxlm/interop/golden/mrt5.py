"""MrT5's golden arrays: T5, delete gate, baselines, controller, data, decoding.

Axes: B batch, L encoder length, C compact slots, W slots of the release, T decoder length, N heads.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import byte_t5, span_corruption
from jaxlm.generation.encoder_decoder import decode
from jaxlm.interop.golden.case import Tolerance, float64
from jaxlm.interop.mrt5 import load_params, store_params
from jaxlm.kernels.attention import BucketBias, KeyBias
from jaxlm.kernels.attention.bias import relative_bucket
from jaxlm.kernels.attention.reference import softmax
from jaxlm.layers.byte_pooling import BoundaryPoolingConfig, StridedPoolingConfig
from jaxlm.layers.delete_gate import (
  DeleteGateConfig,
  FixedDeletionConfig,
  Mode,
  RandomDeletionConfig,
)
from jaxlm.layers.t5 import Keys
from jaxlm.layers.t5 import logits as attention_logits
from jaxlm.models.encoder_decoder import EncoderDecoderConfig
from jaxlm.objectives.deletion import (
  Controller,
  entropy_regulariser,
  gate_regulariser,
  integral_controller,
  mean,
)

OUTPUT = Tolerance(atol=1e-4, rtol=1e-4)
GATE = Tolerance(atol=2e-4)
PROBABILITY = Tolerance(atol=1e-5)
GRADIENT = Tolerance(atol=2e-4, rtol_max=1e-3)
SOFTMAX1 = Tolerance(atol=1e-6, rtol=1e-5)
MARGIN = 3  # slots more than needed: they must change nothing


def reduction_of(config, stored):
  model = config.get("model", "MrT5" if "delete_gate_layer" in config else "T5")
  if model == "RandomT5":
    return RandomDeletionConfig(
      config["delete_gate_layer"],
      config["random_deletion_probability"],
      config["sigmoid_mask_scale"],
    )
  if model == "FixedT5":
    return FixedDeletionConfig(
      config["delete_gate_layer"],
      config["fixed_deletion_amount"],
      config["sigmoid_mask_scale"],
      tuple(config["sep_tokens"]),
      pooled_counts=True,
    )
  if model == "BPT5":
    d_ff = stored[
      f"encoder.block.{config['boundary_predictor_layer']}.boundary_predictor.boundary_predictor.0.bias"
    ].size
    return BoundaryPoolingConfig(
      config["boundary_predictor_layer"],
      d_ff,
      config["temperature"],
      config["prior"],
      fillers_visible=True,
    )
  if model == "CanineT5":
    return StridedPoolingConfig(config["downsampling_layer"], config["downsampling_rate"])
  if "delete_gate_layer" not in config or config["delete_gate_layer"] >= config["num_layers"]:
    return None
  return DeleteGateConfig(
    config["delete_gate_layer"],
    config["sigmoid_mask_scale"],
    config["deletion_threshold"],
    "log_sigmoid" if config["deletion_type"] == "log_sigmoid" else "scaled_sigmoid",
    any("delete_gate.layer_norm" in name for name in stored),
    config.get("use_gumbel_noise", False),
  )


def model_of(case):
  """(config, params, the same without the reduction's weights where it has none of them)."""
  config, stored = case.config, case.group("param")
  # The random and fixed baselines keep the gate's unused weights.
  reduction = reduction_of(config, stored)
  if isinstance(reduction, RandomDeletionConfig | FixedDeletionConfig):
    stored = {k: v for k, v in stored.items() if "delete_gate" not in k}
  cfg = EncoderDecoderConfig(
    vocab_size=config["vocab_size"],
    d_model=config["d_model"],
    d_ff=config["d_ff"],
    num_heads=config["num_heads"],
    d_kv=config["d_kv"],
    num_encoder_layers=config["num_layers"],
    num_decoder_layers=config["num_decoder_layers"],
    num_buckets=config["relative_attention_num_buckets"],
    max_distance=config["relative_attention_max_distance"],
    max_positions=config.get("max_position_embeddings")
    if config.get("has_absolute_position_embeddings")
    else None,
    reduction=reduction,
    softmax1=config.get("use_softmax1", False),
    gated=config["feed_forward_proj"].startswith("gated"),
    scale_logits=config.get("scale_decoder_outputs", config["tie_word_embeddings"]),
    tie_embeddings=config["tie_word_embeddings"]
    and np.array_equal(
      stored.get("lm_head.weight", stored["shared.weight"]), stored["shared.weight"]
    ),
  )
  return cfg, load_params(cfg, stored)


def cross_entropy(logits_BTV, labels_BT):
  """Mean over labels that are not -100."""
  labelled_BT = labels_BT != byte_t5.IGNORED
  nll_BT = -jnp.take_along_axis(
    jax.nn.log_softmax(logits_BTV), jnp.maximum(labels_BT, 0)[..., None], -1
  )[..., 0]
  return mean(nll_BT, labelled_BT)


def encoder_decoder(case):
  """Logits, losses, hidden states, gates, slots, probabilities and every gradient, of any model of
  the family.
  """
  config, (cfg, params) = case.config, model_of(case)
  model = cfg.build()
  tokens_BL = jnp.asarray(case["in/input_ids"])
  valid_BL = (
    jnp.asarray(case["in/attention_mask"])
    if "in/attention_mask" in case
    else (tokens_BL != 0).astype(jnp.int32)
  )
  labels_BT = jnp.asarray(case["in/labels"])
  decoder_BT = jnp.asarray(span_corruption.shift_right(case["in/labels"]))
  hard, soft_pool = (
    bool(config.get("hard_delete")),
    isinstance(cfg.reduction, BoundaryPoolingConfig),
  )
  L = tokens_BL.shape[1]
  W = (
    case["out/encoder_last_hidden_state"].shape[1] if "out/encoder_last_hidden_state" in case else L
  )
  threshold = config.get("deletion_threshold_override")
  capacity = min(W + MARGIN, L) if hard or soft_pool else None
  noise = None
  if "in/permutation" in case:
    noise = jnp.asarray(case["in/deletion_fraction_draw"]), jnp.asarray(case["in/permutation"])
  elif "in/uniform" in case:
    noise = jnp.asarray(case["in/uniform"]).reshape(tokens_BL.shape)
  beta, alpha = config.get("beta", 0.0), config.get("alpha", 0.0)
  measure = "out/scores_loss" in case and not hard

  def forward(params, capacity):
    return model.apply(
      {"params": params},
      tokens_BL,
      decoder_BT,
      valid_BL,
      mode=Mode(hard, capacity, threshold),
      noise=noise,
      train=bool(config.get("training")),
      measure=measure,
      method="run",
      mutable=["intermediates"],
    )

  def loss(params, capacity):
    (logits_BTV, (memory, scores), _), sown = forward(params, capacity)
    out = {
      "logits": logits_BTV,
      "loss": cross_entropy(logits_BTV, labels_BT),
      "scores_loss": scores,
    }
    total, reduced = out["loss"], memory.reduced
    if isinstance(cfg.reduction, DeleteGateConfig):
      real_BL = tokens_BL != 0
      c1, c2 = config.get("entropy_reg", (0.0, 0.0))
      name = config.get("loss_function", "gate_mean_loss")
      R = gate_regulariser(name, reduced.gate_BL, reduced.logits_BL, real_BL, cfg.reduction.tau)
      # With the entropy terms, which alpha does not scale.
      weighted = alpha * R + (entropy_regulariser(reduced.gate_BL, c1, c2) if c1 or c2 else 0.0)
      out["delete_gate_loss_times_alpha"] = weighted
      out["gate_mean_nonpad"] = mean(reduced.gate_BL, real_BL)
      total = total + weighted + beta * scores
    elif soft_pool:
      total = total + reduced.extra["loss"]
    out["total_loss"] = total
    return out[config.get("grad_loss", "loss")], (out, memory, sown["intermediates"])

  (_, (out, memory, sown)), grads = jax.jit(
    jax.value_and_grad(loss, has_aux=True), static_argnums=1
  )(params, capacity)
  compare_outputs(case, cfg, out, memory, sown, hard, W)
  if "out/decoder_input_ids" in case:
    case.compare("out/decoder_input_ids", decoder_BT)
  for name, value in store_params(cfg, grads).items():
    case.compare(f"grad/{name}", value, GRADIENT)
  for name in [k for k in case.unread if "delete_gate" in k and k.startswith("grad/")]:
    case.skip(name, "weights that this baseline does not use")
  if hard:
    too_small = jax.jit(lambda p: forward(p, max(1, W - 1))[0].aux.memory.reduced.overflow_B)(
      params
    )
    case.require(
      "out/overflow",
      W == 1 or bool(np.any(too_small)),
      "a capacity that is too small was not noticed",
    )
    case.require(
      "out/fits",
      not np.any(memory.reduced.overflow_B),
      "a sufficient capacity was called too small",
    )
  if "out/greedy_sequences" in case:
    steps = config["max_new_tokens"]
    decoded = jax.jit(functools.partial(decode, model, max_len=steps, with_logits=True))(
      params, tokens_BL, valid_BL=valid_BL
    )
    case.compare(
      "out/greedy_sequences", decoded.tokens_BT[:, : case["out/greedy_sequences"].shape[1]]
    )
    if case.has("out/greedy_scores"):
      case.compare(
        "out/greedy_scores", decoded.logits_BTV[:, : case["out/greedy_scores"].shape[1]], OUTPUT
      )


def compare_outputs(case, cfg, out, memory, sown, hard, W):
  reduced = memory.reduced
  tokens_BL = case["in/input_ids"]
  for name in ("logits", "loss"):
    case.compare(f"out/{name}", out[name], OUTPUT)
  for name in ("total_loss", "delete_gate_loss_times_alpha", "gate_mean_nonpad"):
    if f"out/{name}" in case:
      case.compare(f"out/{name}", out[name], OUTPUT)
  if "out/scores_loss" in case:
    if hard:
      case.skip("out/scores_loss", "the release averages over filler slots too")
    else:
      case.compare("out/scores_loss", out["scores_loss"], OUTPUT)

  n_e, n_d = cfg.num_encoder_layers, cfg.num_decoder_layers
  front = n_e if cfg.reduction is None else cfg.reduction.layer
  hidden = [sown["encoder_embed"][0]]
  for name in ("encoder_front", "encoder_back"):
    hidden += list(sown[name]["resid"][0]) if name in sown else []
  hidden[-1] = sown["encoder_final"][0]
  slots = None
  if reduced is not None and hidden[-1].shape[1] != tokens_BL.shape[1] or hard:
    slots = np.asarray(reduced.cross_valid_BC[:, :W])

  def cut(x, i):
    return (x, None) if i <= front or slots is None else (x[:, :W], slots)

  for i, x in enumerate(hidden):
    if f"out/encoder_hidden_{i}" in case:
      x, where = cut(x, i)
      case.compare(f"out/encoder_hidden_{i}", x, OUTPUT, where=where)
  if "out/encoder_last_hidden_state" in case:
    x, where = cut(hidden[-1], n_e)
    case.compare("out/encoder_last_hidden_state", x, OUTPUT, where=where)
  hidden = [sown["decoder_embed"][0], *sown["decoder"]["resid"][0][:-1], sown["decoder_final"][0]]
  for i, x in enumerate(hidden):
    if f"out/decoder_hidden_{i}" in case:
      case.compare(f"out/decoder_hidden_{i}", x, OUTPUT)
  compare_gate(case, cfg, reduced, W)
  compare_attention(case, cfg, sown, memory, slots, W, n_d)


def compare_gate(case, cfg, reduced, W):
  config, tokens_BL = case.config, case["in/input_ids"]

  def column(x):
    return np.asarray(x)[..., None]

  if "out/delete_gate_output" in case:
    case.compare("out/delete_gate_output", column(reduced.gate_BL), GATE)
  if "out/delete_gate_logits" in case:
    case.compare("out/delete_gate_logits", column(reduced.logits_BL), OUTPUT)
  fillers = None
  if config.get("hard_delete") and "out/src_positions" in case:
    valid_BW = np.asarray(reduced.valid_BC)[:, :W]
    case.compare("out/src_positions", np.asarray(reduced.source_BC)[:, :W])
    fillers = np.where(valid_BW, 0.0, -1e9).astype(np.float32)
    case.compare("out/compact_delete_mask", column(fillers))
    case.compare("out/keep", np.asarray(reduced.keep_BL).astype(np.int32))
    case.compare("out/encoder_attention_mask_returned", np.ones(valid_BW.shape, np.int32))
  if "out/delete_gate_mask" in case:
    case.compare(
      "out/delete_gate_mask", column(reduced.gate_BL if fillers is None else fillers), GATE
    )
  if "out/percent_deleted" in case:
    real_BL = tokens_BL != 0
    # The release counts by the configured threshold even where a call deletes by its own.
    deleted_BL = np.asarray(reduced.gate_BL) < config["deletion_threshold"]
    case.compare(
      "out/percent_non_pad_deleted", 100 * np.sum(deleted_BL & real_BL) / np.sum(real_BL), OUTPUT
    )
    case.compare("out/percent_deleted", 100 * np.mean(deleted_BL), OUTPUT)
  if "out/n_deletions" in case:
    case.compare("out/n_deletions", reduced.extra["number"])
  for ours, theirs in (
    ("soft", "soft_boundaries"),
    ("predicted", "predictor_hard_boundaries"),
    ("hard", "hard_boundaries"),
  ):
    if f"out/{theirs}" in case:
      case.compare(f"out/{theirs}", reduced.extra[ours], PROBABILITY)
  if "out/loss_boundaries" in case:
    case.compare("out/loss_boundaries", reduced.extra["loss"], OUTPUT)


def compare_attention(case, cfg, sown, memory, slots, W, n_d):
  """Probabilities and scores from the sown queries and keys."""
  params = case.group("param")
  valid_BL = jnp.asarray(
    case["in/attention_mask"] if "in/attention_mask" in case else case["in/input_ids"] != 0
  ).astype(bool)
  full = Keys(valid_BL)
  back = (
    full
    if memory.reduced is None
    else Keys(memory.reduced.valid_BC, memory.reduced.gate_BC, memory.reduced.index_BC)
  )

  def attend(key, stack, layer, part, keys, causal=False, table=None, score=False):
    if key not in case:
      return
    q, k = (sown[stack][part][name][0][layer] for name in "qk")
    bias = ()
    if table is not None and table in params:
      bias = (
        BucketBias(
          jnp.asarray(params[table]), bidirectional=not causal, max_distance=cfg.max_distance
        ),
      )
    index = keys.index_BS if part == "attention" else None
    s_BNTS = attention_logits(q, k, keys, bias, index, causal)
    want = case[key]
    where = np.broadcast_to(np.asarray(keys.valid_BS)[:, None, None, : want.shape[3]], want.shape)
    if slots is not None and part == "attention" and stack == "encoder_back":
      where = where & slots[:, None, :, None]
    if score:
      case.compare(key, s_BNTS[:, :, : want.shape[2], : want.shape[3]], OUTPUT, where=where)
      return
    if keys.gate_BS is not None:
      s_BNTS = KeyBias(None, -keys.gate_BS[:, :, None]).add(s_BNTS, None)
    p_BNTS, l_BNT1, _ = softmax(s_BNTS, cfg.softmax1)
    p_BNTS = p_BNTS / jnp.where(l_BNT1 == 0, 1.0, l_BNT1)
    rows = where.any(axis=3)
    case.compare(key, p_BNTS[:, :, : want.shape[2], : want.shape[3]], PROBABILITY, where=rows)

  relative = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  encoder, decoder = relative.format("encoder"), relative.format("decoder")
  first = ("encoder_front", 0, full) if "encoder_front" in sown else ("encoder_back", 0, back)
  last = ("encoder_back", -1, back) if "encoder_back" in sown else ("encoder_front", -1, full)
  attend("out/encoder_attn_0", *first[:2], "attention", first[2], table=encoder)
  attend("out/encoder_attn_last", *last[:2], "attention", last[2], table=encoder)
  attend("out/encoder_attn_gate_layer", "encoder_back", 0, "attention", back, table=encoder)
  attend(
    "out/encoder_scores_gate_layer", "encoder_back", 0, "attention", back, table=encoder, score=True
  )
  own = Keys(jnp.ones(case["in/labels"].shape, bool))
  attend("out/decoder_attn_last", "decoder", -1, "attention", own, True, decoder)
  attend("out/cross_attn_0", "decoder", 0, "cross", memory.keys)
  attend("out/cross_attn_last", "decoder", -1, "cross", memory.keys)


def generate(case):
  """Greedy decoding from the compact states, each input alone."""
  cfg, params = model_of(case)
  model = cfg.build()
  i = 0
  while f"in/input_ids_{i}" in case:
    tokens_BL = jnp.asarray(case[f"in/input_ids_{i}"])
    steps = case.config["max_length"] - 1
    run = jax.jit(
      functools.partial(
        decode, model, max_len=steps, with_logits=True, mode=Mode(bool(case.config["hard_delete"]))
      )
    )
    decoded = run(params, tokens_BL)
    length = case[f"out/sequences_{i}"].shape[1]
    case.compare(f"out/sequences_{i}", decoded.tokens_BT[:, :length])
    case.compare(f"out/scores_{i}", decoded.logits_BTV[:, : length - 1], OUTPUT)
    i += 1


def softmax1(case):
  def weighted(x):
    p, l, _ = softmax(x, True)
    return jnp.sum(p / l * case["in/w"]), p / l

  grad, y = jax.grad(weighted, has_aux=True)(jnp.asarray(case["in/x"]))
  case.compare("out/y", y, SOFTMAX1)
  case.compare("grad/x", grad, SOFTMAX1)


def buckets(case):
  for n, distance in case.config["combos"]:
    for name, both in (("bi", True), ("causal", False)):
      case.compare(
        f"out/bucket_nb{n}_md{distance}_{name}",
        relative_bucket(
          jnp.asarray(case["in/relative_position"]),
          num_buckets=n,
          max_distance=distance,
          bidirectional=both,
        ),
      )


@float64
def controller(case):
  exact = Tolerance(atol=1e-12)
  for run in case.config["runs"]:
    rates, i = case[f"in/rates_{run['rates']}"], run["index"]
    law = Controller(run["target"], run["k_p"], run["k_i"])

    def step(state, rate, law=law):
      new = law.update(*state, rate)
      return new[1:], new

    zero = jnp.zeros((), jnp.float64)
    _, (alpha, p, total) = jax.lax.scan(step, (zero, zero), jnp.asarray(rates))
    for name, value in (("alpha", alpha), ("p_acc", p), ("i_acc", total)):
      case.compare(f"out/f64_{name}_{i}", value, exact)
  old = case.config["legacy_i_controller"]
  alpha, values = old["alpha0"], []
  for rate in case[f"in/rates_{old['rates']}"]:
    alpha = integral_controller(alpha, rate, old["target"], old["k_i"])
    values.append(alpha)
  case.compare("out/f64_icontroller_alpha", np.asarray(values), exact)
