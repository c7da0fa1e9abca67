"""Golden checks of ordinary decoders: Hugging Face weights in, our numbers beside the library's.

Axes: B batch, T time, L layers, V vocab. Tolerances: README of the golden folder.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.interop import huggingface
from jaxlm.interop.golden.case import Tolerance
from jaxlm.layers import stack

HIDDEN = Tolerance(atol=2e-4, rtol=1e-4)
LOSS = Tolerance(rtol=1e-5)
GRADIENT = Tolerance(atol=2e-4, rtol_max=1e-3)
MIN_GAP = 1e-3  # between the two best logits; below it the argmax depends on rounding

#: Fields of a golden config that are not the library's.
NOT_THEIRS = ("system", "kind", "architecture", "lens", "library")


def causal_lm(case, hidden_states=None):
  """Logits, hidden states, loss, gradients in the library's names, and greedy decoding through the
  cache.

  hidden_states: what the library stores, from our sown values; default `before_layers`.
  """
  hidden_states = hidden_states or before_layers
  hf = {key: value for key, value in case.config.items() if key not in NOT_THEIRS}
  hf["architectures"] = [case.config.get("architecture") or _architecture(case.config["kind"])]
  tokens_BT = case["in/input_ids"]
  valid_BT = (
    case["in/attention_mask"] == 1
    if "in/attention_mask" in case
    else np.ones(tokens_BT.shape, bool)
  )
  labels_BT = case.given("in/labels", tokens_BT).astype(np.int32)
  cfg = huggingface.read_config(hf, seq_len=tokens_BT.shape[1])
  params = huggingface.import_params(hf, case.group("param"), cfg=cfg, dtype=np.float32)
  model, table = cfg.build(), huggingface.converter_of(hf).table(cfg)
  # No segment ids: with padding on the right, causality alone keeps it from the real tokens, as in
  # the library.
  tokens_BT = jnp.asarray(tokens_BT)

  targets_BT, weights_BT = shifted(labels_BT)

  def loss(params):
    logits_BTV, sown = model.apply({"params": params}, tokens_BT, mutable=["intermediates"])
    score = model.apply({"params": params}, tokens_BT, targets_BT, method="score")
    value = -jnp.sum(score.log_prob_BT * weights_BT) / jnp.maximum(jnp.sum(weights_BT), 1)
    return value, (logits_BTV, hidden_states(sown["intermediates"], cfg))

  (value, (logits_BTV, hidden)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  case.compare("out/logits", logits_BTV, HIDDEN, where=valid_BT)
  for i, h_BTD in enumerate(hidden):
    case.compare(f"out/hidden_{i}", h_BTD, HIDDEN, where=valid_BT)
  case.compare("out/loss", value, LOSS)
  for name, grad in table.export_params(grads).items():
    case.compare(f"grad/{name}", grad, GRADIENT)

  if "in/prompt" in case and case.has("out/greedy"):
    check_greedy(case, hf, params)


def mamba2_lm(case):
  """As `causal_lm`; the library stores what leaves each Mamba block, not what enters it."""
  causal_lm(
    case,
    lambda sown, cfg: [
      *stack.in_layer_order(sown["blocks"], cfg.mixers, cfg.period),
      sown["final"][0],
    ],
  )


def before_layers(sown, cfg) -> list:
  """What enters each layer, then the final norm's output: num_layers + 1 arrays (B, T, D)."""
  blocks = stack.in_layer_order(sown["blocks"], cfg.mixers, cfg.period)
  return [sown["embedded"][0], *blocks[:-1], sown["final"][0]]


def shifted(labels_BT):
  """(targets, weights): the token to predict at each position, and whether it counts (-100 does
  not).
  """
  next_BT = np.concatenate([labels_BT[:, 1:], np.full_like(labels_BT[:, :1], -100)], axis=1)
  return jnp.asarray(np.maximum(next_BT, 0)), jnp.asarray(next_BT != -100, jnp.float32)


def check_greedy(case, hf, params) -> None:
  """Prefill, then one token at a time; a row is followed until the library's own choice was too
  close to call.
  """
  prompt_BT, want_BT = case["in/prompt"], case["out/greedy"]
  batch_size, length = want_BT.shape
  cfg = huggingface.read_config(hf, seq_len=length)
  if (hf.get("rope_parameters") or hf.get("rope_scaling") or {}).get("rope_type") == "dynamic" and (
    length > hf.get("max_position_embeddings", length)
  ):
    why = (
      "dynamic RoPE beyond max_position_embeddings changes old keys at every step; a cache does not"
    )
    case.skip("out/greedy", why)
    if "out/greedy_top2_gap" in case:
      case.skip("out/greedy_top2_gap", why)
    return
  model, start = cfg.build(), prompt_BT.shape[1]
  extend = jax.jit(
    lambda tokens, state: model.apply({"params": params}, tokens, state, method="extend")
  )
  logits_BTV, state = extend(jnp.asarray(prompt_BT), cfg.init_state(batch_size, length))
  got, gaps = [prompt_BT], []
  for step in range(length - start):
    best_BV = jax.lax.top_k(logits_BTV[:, -1], 2)[0]
    gaps.append(np.asarray(best_BV[:, 0] - best_BV[:, 1]))
    token_B1 = jnp.argmax(logits_BTV[:, -1], axis=-1)[:, None].astype(jnp.int32)
    got.append(np.asarray(token_B1))
    if step + 1 < length - start:
      logits_BTV, state = extend(token_B1, state)
  gap_BT = (
    case["out/greedy_top2_gap"] if case.has("out/greedy_top2_gap") else np.stack(gaps, axis=1)
  )
  clear_BT = np.cumprod(gap_BT >= MIN_GAP, axis=1).astype(bool)
  case.compare(
    "out/greedy",
    np.concatenate(got, axis=1),
    where=np.concatenate([np.ones_like(prompt_BT, bool), clear_BT], axis=1),
  )
  case.compare("out/greedy_top2_gap", np.stack(gaps, axis=1), HIDDEN, where=clear_BT)


def _architecture(kind: str) -> str:
  model_type = kind.removeprefix("hf_")
  if model_type not in huggingface.MODEL_TYPES:
    raise ConfigError(f"kind {kind!r} names no architecture that is supported")
  return huggingface.MODEL_TYPES[model_type]
