"""Golden checks of CARoPE and its neighbours, through the layers and models that users run.

Axes: B batch, T time, N query heads, K kv heads, H head_dim, D d_model, P rotated pairs, V vocab.
Tolerances: README of the golden folder. Phases are compared modulo 2 pi.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop.golden.case import Tolerance
from jaxlm.kernels import attention as op
from jaxlm.kernels.phase import cumulative_phase, sincos
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mixer import Context
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.layers.positions.carope import CARoPE, Ladder, log_frequency
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.decoder import DecoderConfig

OUTPUT = Tolerance(rtol_max=2e-5)
GRADIENT = Tolerance(rtol_max=1e-4)
PHASE = Tolerance(atol=5e-6)
LOSS = Tolerance(atol=1e-5)
LONG_PHASE, LONG_GRADIENT, LONG_LOSS = (
  Tolerance(atol=5e-4),
  Tolerance(rtol_max=1e-3),
  Tolerance(atol=1e-2),
)


# ---------------------------------------------------------------------------------------------------------------------
# One attention layer


def carope_of(config) -> CARoPE:
  return CARoPE(
    freq_source=config.get("freq_source", "attn_input"),
    init="rope" if config["use_bias"] else "paper_literal",
    theta=config["rope_base"],
    mask_increments=config["mask_increments"],
    reset_on_segment=config.get("reset_on_segment", False),
    ladder=Ladder(
      config["rotary_dim"],
      config["layout"],
      config["ladder_start"],
      config["cumsum"] == "inclusive",
    ),
  )


def attention_of(config, params, prefix="") -> AttentionConfig:
  return AttentionConfig(
    num_heads=config["n_head"],
    num_kv_heads=config.get("n_kv_head"),
    position=carope_of(config),
    head_dim=params[prefix + "wq"].shape[1] // config["n_head"],
    use_bias=prefix + "bq" in params,
  )


def mixer_params(cfg: AttentionConfig, params) -> dict:
  """Stored (D, N H) kernels as ours, (D, N, H)."""
  K, H = cfg.num_kv_heads or cfg.num_heads, cfg.head_dim
  count = {"q": cfg.num_heads, "k": K, "v": K}
  ours = {}
  for name, value in params.items():
    if name.startswith("freq_"):
      ours[name] = np.asarray(value, np.float32)
    elif name[1] == "o":
      ours[f"{name[0]}_o"] = value.reshape(cfg.num_heads, H, -1) if name[0] == "w" else value
    else:
      ours[f"{name[0]}_{name[1]}"] = value.reshape(*value.shape[:-1], count[name[1]], H)
  return jax.tree.map(jnp.asarray, ours)


def stored_mixer(ours) -> dict:
  """The inverse of mixer_params, for gradients."""
  stored = {}
  for name, value in ours.items():
    value = np.asarray(value)
    if name.startswith("freq_"):
      stored[name] = value
    elif name == "w_o":
      stored["wo"] = value.reshape(-1, value.shape[-1])
    elif name == "b_o":
      stored["bo"] = value
    else:
      stored[name.replace("_", "")] = value.reshape(*value.shape[:-2], -1)
  return stored


class Layer:
  """One attention layer with the parameters of a case."""

  def __init__(self, cfg: AttentionConfig, config, params):
    self.cfg, self.heads = cfg, cfg.heads(config["d_model"])
    self.module = cfg.build(config["d_model"], "float32")
    self.params = mixer_params(cfg, params)

  def context(self, valid_BT) -> Context:
    valid_BT = jnp.asarray(valid_BT, jnp.int32)
    return Context(valid_BT, jnp.broadcast_to(jnp.arange(valid_BT.shape[1])[None], valid_BT.shape))

  def __call__(self, params, x_BTD, valid_BT):
    """(out, zero at padding; intermediates)."""
    (y_BTD, _), sown = self.module.apply(
      {"params": params}, x_BTD, self.context(valid_BT), mutable=["intermediates"]
    )
    return y_BTD * jnp.asarray(valid_BT, jnp.float32)[..., None], jax.tree.map(
      lambda leaf: leaf[0], sown["intermediates"], is_leaf=lambda leaf: isinstance(leaf, tuple)
    )

  def run(self, x_BTD, valid_BT=None):
    valid_BT = np.ones(x_BTD.shape[:2]) if valid_BT is None else valid_BT
    return jax.jit(self)(self.params, jnp.asarray(x_BTD), jnp.asarray(valid_BT))

  def phases(self, sown, valid_BT=None):
    log_f_BTK = log_frequency(sown["freq_preact"])
    valid_BT = np.ones(log_f_BTK.shape[:2]) if valid_BT is None else valid_BT
    return np.asarray(self.cfg.position.phases(self.heads, log_f_BTK, self.context(valid_BT))[0])

  def probabilities(self, sown, valid_BT):
    """softmax(q k^T), (B, N, T, T): attention to one-hot values."""
    segments = jnp.asarray(valid_BT, jnp.int32)
    B, T = segments.shape
    onehot_BSKS = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, self.heads.num_kv_heads, T))
    return op.attention(sown["q"], sown["k"], onehot_BSKS, q_segment_ids_BT=segments).transpose(
      0, 2, 1, 3
    )


def attention_block(case):
  """Every intermediate of one layer, and the gradients of loss = sum(out cotangent)."""
  stored = case.group("param")
  layer = Layer(attention_of(case.config, stored), case.config, stored)
  valid_BT, cotangent = (
    case["in/valid"],
    case.given("in/cotangent", case["in/x"]).astype(np.float64),
  )

  @jax.jit
  def run(params, x_BTD):
    y_BTD, pull, sown = jax.vjp(
      lambda params, x_BTD: layer(params, x_BTD, valid_BT), params, x_BTD, has_aux=True
    )
    return y_BTD, pull(jnp.asarray(cotangent, jnp.float32)), sown

  y_BTD, (grads, dx_BTD), sown = run(layer.params, jnp.asarray(case["in/x"]))

  case.compare("out/freq_preact", sown["freq_preact"], OUTPUT)
  case.compare("out/freq", jnp.exp(log_frequency(sown["freq_preact"])), PHASE)
  compare_phase(case, "out/phase", layer.phases(sown, valid_BT))
  case.compare("out/q_rot", sown["q"], OUTPUT)
  case.compare("out/k_rot", sown["k"], OUTPUT)
  compare_rows(case, "out/probs", layer.probabilities(sown, valid_BT), valid_BT)
  case.compare("out/out", y_BTD, OUTPUT)
  case.compare(
    "out/loss", np.sum(np.asarray(y_BTD, np.float64) * cotangent), sum_tolerance(y_BTD, cotangent)
  )
  for name, value in stored_mixer(grads).items():
    case.compare(f"grad/{name}", value, GRADIENT)
  case.compare("grad/x", dx_BTD, GRADIENT)


def sum_tolerance(y, cotangent) -> Tolerance:
  """LOSS, or for a plain sum of many terms the outputs' own rounding, 1e-7 of each, if that is
  more.
  """
  return dataclasses.replace(
    LOSS, atol=max(LOSS.atol, 1e-7 * float(np.sum(np.abs(np.asarray(y) * cotangent))))
  )


def rope_equivalence(case):
  """W = 0 and c = log(expm1(1/theta_1 - 1)): CARoPE is RoPE."""
  stored, x, valid_BT = case.group("param"), case["in/x"], case["in/valid"]
  cfg = attention_of(case.config, stored)
  carope = Layer(cfg, case.config, stored)
  rope = Layer(
    dataclasses.replace(
      cfg, position=RoPE(case.config["rope_base"], case.config["rotary_dim"], case.config["layout"])
    ),
    case.config,
    {k: v for k, v in stored.items() if not k.startswith("freq_")},
  )
  y_BTD, sown = carope.run(x, valid_BT)
  case.compare("out/out_carope", y_BTD, OUTPUT)
  case.compare("out/out_rope", rope.run(x, valid_BT)[0], OUTPUT)
  compare_rows(case, "out/probs", carope.probabilities(sown, valid_BT), valid_BT)
  compare_phase(case, "out/phase_carope", carope.phases(sown, valid_BT))
  # What a fresh layer starts with.
  fresh = carope.module.init(jax.random.key(0), jnp.asarray(x), carope.context(valid_BT))["params"]
  bias_K = np.asarray(fresh["freq_bias"].unbox())
  case.compare("out/freq_bias_exact", bias_K[0], Tolerance(rtol=1e-6))
  case.compare(
    "out/theta1", 1 / (1 + np.log1p(np.exp(np.float64(bias_K[0])))), Tolerance(rtol=1e-6)
  )
  case.require(
    "grad/freq_kernel", not np.any(fresh["freq_kernel"].unbox()), "a fresh kernel is not 0"
  )


def properties(case):
  """Order blindness between the end points, left padding, prefix independence, causality: on stored
  arrays.
  """
  stored, x = case.group("param"), case["in/x"]
  layer = Layer(attention_of(case.config, stored), case.config, stored)
  m, n = case.config["query_pos"], case.config["key_pos"]
  y_BTD, sown = layer.run(x)
  phase_TKP = layer.phases(sown)[0]
  case.compare("out/out", y_BTD, OUTPUT)
  case.compare("out/score_mn", score(layer, sown, m, n), OUTPUT)
  compare_phase(case, "out/rel_phase_mn", phase_TKP[m] - phase_TKP[n])

  _, permuted = layer.run(x[:, case["in/middle_permutation"]])
  case.compare("out/score_mn_permuted", score(layer, permuted, m, n), OUTPUT)
  permuted_TKP = layer.phases(permuted)[0]
  compare_phase(case, "out/rel_phase_mn_permuted", permuted_TKP[m] - permuted_TKP[n])

  prefix = case["in/prefix"]
  longer, start = np.concatenate([prefix, x], axis=1), prefix.shape[1]
  padded = np.arange(longer.shape[1])[None] >= start
  case.compare("out/out_left_padded_tail", layer.run(longer, padded)[0][:, start:], OUTPUT)
  tail_TKP = layer.phases(layer.run(longer)[1])[0, start:]
  compare_phase(case, "out/rel_phase_all", tail_TKP[:, None] - tail_TKP[None])

  if not case.has("out/x_perturbed_pos"):
    return
  position = int(case["out/x_perturbed_pos"])
  changed = x.copy()
  changed[:, position] += 1.0
  after_BTD = np.asarray(layer.run(changed)[0])
  earlier = np.broadcast_to(np.arange(x.shape[1])[None] < position, x.shape[:2])
  case.compare("out/out_after_perturb", after_BTD, OUTPUT, where=earlier)
  same = np.array_equal(after_BTD[:, :position], np.asarray(y_BTD)[:, :position])
  case.require("out/x_perturbed_pos", same, "an earlier output changed with a later token")


def score(layer: Layer, sown, m: int, n: int):
  """q_m . k_n per head, as stored: not divided by sqrt(H)."""
  N, K = layer.heads.num_heads, layer.heads.num_kv_heads
  k_NH = np.repeat(np.asarray(sown["k"])[0, n], N // K, axis=0)
  return np.sum(np.asarray(sown["q"])[0, m] * k_NH, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Language models


def decoder_of(config, params) -> DecoderConfig:
  return DecoderConfig(
    vocab_size=config["vocab_size"],
    d_model=config["d_model"],
    num_layers=config["n_layer"],
    mixer=attention_of(config, params, "h.0.attn."),
    norm=LayerNormConfig(config["ln_eps"]),
    mlp=MLPConfig(params["h.0.mlp.w1"].shape[1], config["act"], use_bias="h.0.mlp.b1" in params),
    tie_embeddings=config["tied"],
  )


NORMS = {"ln_1": "norm", "ln_2": "mlp_norm"}
MLP = {"w1": "w_in", "b1": "b_in", "w2": "w_out", "b2": "b_out"}


def model_params(cfg: DecoderConfig, stored) -> dict:
  def layer(l):
    def part(name):
      return {k[len(name) :]: v for k, v in stored.items() if k.startswith(name)}

    return {
      "mixer": mixer_params(cfg.mixer, part(f"h.{l}.attn.")),
      "mlp": {MLP[k]: v for k, v in part(f"h.{l}.mlp.").items()},
      **{ours: part(f"h.{l}.{theirs}.") for theirs, ours in NORMS.items()},
    }

  blocks = jax.tree.map(
    lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]),
    *(layer(l) for l in range(cfg.num_layers)),
  )
  final = {k[len("ln_f.") :]: jnp.asarray(v) for k, v in stored.items() if k.startswith("ln_f.")}
  params = {
    "embed": {"embedding": jnp.asarray(stored["wte"])},
    "blocks": blocks,
    "final_norm": final,
  }
  if not cfg.tie_embeddings:
    params["head"] = {"w_out": jnp.asarray(stored["head"])}
  return params


def stored_params(cfg: DecoderConfig, params) -> dict:
  """The inverse of model_params, for gradients."""
  stored = {
    "wte": params["embed"]["embedding"],
    **{f"ln_f.{k}": v for k, v in params["final_norm"].items()},
  }
  if not cfg.tie_embeddings:
    stored["head"] = params["head"]["w_out"]
  for l in range(cfg.num_layers):
    block = jax.tree.map(lambda x, l=l: x[l], params["blocks"])
    stored.update({f"h.{l}.attn.{k}": v for k, v in stored_mixer(block["mixer"]).items()})
    stored.update(
      {
        f"h.{l}.mlp.{theirs}": block["mlp"][ours]
        for theirs, ours in MLP.items()
        if ours in block["mlp"]
      }
    )
    stored.update(
      {f"h.{l}.{theirs}.{k}": v for theirs, ours in NORMS.items() for k, v in block[ours].items()}
    )
  return stored


def language_model(case):
  """Logits, losses, hidden states, frequencies and every gradient of a tied LM, padded or packed."""
  stored, valid_BT = case.group("param"), case["in/valid"]
  cfg = decoder_of(case.config, stored)
  model, params = cfg.build(), model_params(cfg, stored)
  # Stored segments count from 0.
  segments_BT = (
    case["in/segment_ids"] + 1 if "in/segment_ids" in case else np.ones(valid_BT.shape, np.int32)
  )
  segments_BT = jnp.asarray(np.where(valid_BT > 0, segments_BT, 0), jnp.int32)
  tokens_BT, targets_BT = jnp.asarray(case["in/ids"]), jnp.asarray(case["in/targets"])

  def loss(params):
    logits_BTV, sown = model.apply(
      {"params": params}, tokens_BT, segments_BT, mutable=["intermediates"]
    )
    nll_BT = -model.apply(
      {"params": params}, tokens_BT, targets_BT, segments_BT, method="score"
    ).log_prob_BT
    value = jnp.sum(nll_BT * valid_BT) / np.sum(valid_BT)
    return value, (logits_BTV, nll_BT, sown["intermediates"]["blocks"])

  (value, (logits_BTV, nll_BT, sown)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params
  )
  mask_BT1 = jnp.asarray(valid_BT)[..., None]
  case.compare("out/logits", logits_BTV * mask_BT1, OUTPUT)
  case.compare("out/nll", nll_BT * mask_BT1[..., 0], OUTPUT)
  case.compare("out/loss", value, LOSS)
  heads, positions = cfg.mixer.heads(cfg.d_model), jnp.zeros_like(segments_BT)
  for l in range(cfg.num_layers):
    log_f_BTK = log_frequency(sown["mixer"]["freq_preact"][0][l])
    case.compare(f"out/hidden.{l}", sown["resid"][0][l] * mask_BT1, OUTPUT)
    case.compare(f"out/freq.{l}", jnp.exp(log_f_BTK) * mask_BT1, PHASE)
    if f"out/phase.{l}" in case:
      phase_BTKP, _ = cfg.mixer.position.phases(heads, log_f_BTK, Context(segments_BT, positions))
      compare_phase(case, f"out/phase.{l}", np.asarray(phase_BTKP), where=valid_BT > 0)
  for name, value in stored_params(cfg, grads).items():
    case.compare(f"grad/{name}", value, GRADIENT)


def decode(case):
  """Prefill, then one token at a time: logits and the whole cache equal the parallel pass."""
  stored, tokens_BT, split = (
    case.group("param"),
    jnp.asarray(case["in/ids"]),
    int(case["in/n_prefill"]),
  )
  cfg = decoder_of(case.config, stored)
  model, params = cfg.build(), model_params(cfg, stored)
  extend = jax.jit(
    lambda tokens_BT, state: model.apply({"params": params}, tokens_BT, state, method="extend")
  )
  B, T = tokens_BT.shape

  case.compare("out/logits_parallel", jax.jit(model.apply)({"params": params}, tokens_BT), OUTPUT)
  logits_BTV, state = extend(tokens_BT[:, :split], cfg.init_state(B, T))
  case.compare("out/prefill_logits", logits_BTV, OUTPUT)
  compare_state(case, "after_prefill", state.layers, split, cfg.num_layers)
  steps = []
  for t in range(split, T):
    logits_BTV, state = extend(tokens_BT[:, t : t + 1], state)
    steps.append(logits_BTV)
  case.compare("out/decode_logits", jnp.concatenate(steps, axis=1), OUTPUT)
  compare_state(case, "final", state.layers, T, cfg.num_layers)


def compare_state(case, when: str, layers, length: int, num_layers: int):
  for l in range(num_layers):
    compare_phase(case, f"out/state_phase_{when}.{l}", np.asarray(layers.position[l]))
    case.compare(f"out/state_krot_{when}.{l}", layers.k_BSKH[l, :, :length], OUTPUT)
    if f"out/state_v_{when}.{l}" in case:
      case.compare(f"out/state_v_{when}.{l}", layers.v_BSKH[l, :, :length], OUTPUT)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels alone


def long_phase(case):
  """Thousands of tokens: phases, their sine and cosine, and the gradient of frequencies, within
  float32.
  """
  config, at = case.config, jnp.asarray(case["in/positions"])

  def loss(freq_BTK):
    phase_BTKP, _ = cumulative_phase(
      jnp.log(freq_BTK),
      config["n_pairs"],
      ladder_start=config["ladder_start"],
      inclusive=config["cumsum"] == "inclusive",
    )
    phase = phase_BTKP[0, at]
    sin, cos = sincos(phase)
    w_cos, w_sin = (case.given(f"in/w_{name}", cos) for name in ("cos", "sin"))
    return jnp.sum(w_cos * cos + w_sin * sin), (phase, cos, sin)

  (value, (phase, cos, sin)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    jnp.asarray(case["in/freq"])
  )
  compare_phase(case, "out/phase", np.asarray(phase), LONG_PHASE)
  compare_phase(case, "out/phase_wrapped", np.asarray(phase), LONG_PHASE)
  case.compare("out/cos", cos, LONG_PHASE)
  case.compare("out/sin", sin, LONG_PHASE)
  case.compare("out/loss", value, LONG_LOSS)
  case.compare("grad/freq", grad, LONG_GRADIENT)
  case.skip(
    "out/naive_f32_max_abs_err", "the error of a sequential float32 sum, which we do not use"
  )


# ---------------------------------------------------------------------------------------------------------------------


def compare_phase(case, key: str, phase, tolerance=PHASE, where=None):
  """Modulo 2 pi: the stored value plus the wrapped difference."""
  if not case.has(key):
    return
  want = case[key].astype(np.float64)
  difference = np.asarray(phase, np.float64) - want
  case.compare(
    key, want + difference - 2 * np.pi * np.round(difference / (2 * np.pi)), tolerance, where=where
  )


def compare_rows(case, key: str, probs_BNTS, valid_BT):
  """Attention probabilities of the queries that are real."""
  rows = np.broadcast_to(np.asarray(valid_BT)[:, None] > 0, probs_BNTS.shape[:3])
  case.compare(key, probs_BNTS, OUTPUT, where=rows)
