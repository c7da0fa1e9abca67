"""Golden checks of the baselines of insertion models: left to right, and masked diffusion."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.generation import masked_diffusion as diffusion_sampler
from jaxlm.interop import ilm
from jaxlm.interop.golden.ilm import LOGITS, LOSS, PER_TOKEN, compare_gradients, load
from jaxlm.objectives import masked_diffusion


def arlm(case):
  """arlm: the causal baseline with left or right padding, and greedy decoding through its cache."""
  c = case.config
  cfg = ilm.read_transformer(c, causal=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  ids_BT, inside_BT = case["in/input_ids"], np.asarray(case["in/attention_mask"], bool)
  segment_ids_BT = inside_BT.astype(np.int32)
  positions_BT = ((np.cumsum(inside_BT, axis=1) - 1) * inside_BT).astype(np.int32)
  targets_BT = np.concatenate([ids_BT[:, 1:], ids_BT[:, -1:]], axis=1)
  types_BT = np.concatenate([case["in/token_type_ids"][:, 1:], np.ones_like(ids_BT[:, :1])], axis=1)
  counted_BT = (types_BT > 1) & (targets_BT != c["pad"])

  def loss(params):
    score = model.apply(
      {"params": params}, ids_BT, targets_BT, segment_ids_BT, positions_BT, method="score"
    )
    return -jnp.sum(score.log_prob_BT * counted_BT) / counted_BT.sum(), score.log_prob_BT

  (value, log_prob_BT), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits = jax.jit(model.apply)({"params": params}, ids_BT, segment_ids_BT, positions_BT)
  case.compare("out/positions", positions_BT)
  case.compare("out/logits", logits, LOGITS, where=inside_BT)
  case.compare("out/nlls", -np.asarray(log_prob_BT)[counted_BT], PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)

  if not case.has("out/greedy_ids"):
    return
  prompt_BT, width = case["in/prompt_ids"], case["out/greedy_ids"].shape[1]
  extend = jax.jit(
    lambda t, s, valid: model.apply({"params": params}, t, s, valid, method="extend")
  )
  logits, state = extend(
    prompt_BT, cfg.init_state(len(prompt_BT), width), case["in/prompt_mask"].astype(np.int32)
  )
  found, ended_B = prompt_BT, np.zeros(len(prompt_BT), bool)
  while found.shape[1] < width:
    token_B = np.where(ended_B, c["pad"], np.argmax(np.asarray(logits[:, -1]), axis=-1)).astype(
      np.int32
    )
    ended_B |= token_B == c["eos"]
    found = np.concatenate([found, token_B[:, None]], axis=1)
    logits, state = extend(token_B[:, None], state, np.ones((len(found), 1), np.int32))
  case.compare("out/greedy_ids", found)


def mdlm(case):
  """mdlm: schedule, network, loss at fixed time and mask, and the whole sampler with its noise."""
  c = case.config
  cfg = ilm.read_diffusion(c)
  table = ilm.diffusion_table(cfg)
  model, params = load(case, cfg, table)
  ids_BT, drop_BT = case["in/input_ids"], np.asarray(case["in/drop"], bool)
  inside_BT = np.asarray(case["in/attention_mask"], bool)
  keys_BT = None if c["loss_on_padding"] else inside_BT
  masked_BT = drop_BT if c["loss_on_padding"] else drop_BT & inside_BT
  t_B, x_BT = jnp.asarray(case["in/t"]), np.where(drop_BT, c["mask"], ids_BT)
  t_T = jnp.asarray(case["in/schedule_t"])
  case.compare("out/schedule_noise_rate", masked_diffusion.noise_rate(t_T), PER_TOKEN)
  case.compare("out/schedule_total_noise", masked_diffusion.total_noise(t_T), PER_TOKEN)
  sigma_B = masked_diffusion.total_noise(t_B)
  case.compare("in/noise_rate", masked_diffusion.noise_rate(t_B), PER_TOKEN)
  case.compare("in/total_noise", sigma_B, PER_TOKEN)

  def loss(params):
    log_prob_BT, _ = model.apply({"params": params}, x_BT, ids_BT, sigma_B, keys_BT, method="score")
    pair = masked_diffusion.masked_nll(log_prob_BT, jnp.asarray(masked_BT, jnp.float32), t_B)
    return pair.sum / pair.weight, log_prob_BT

  (value, log_prob_BT), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits, sown = jax.jit(
    lambda p: model.apply({"params": p}, x_BT, sigma_B, keys_BT, mutable=["intermediates"])
  )(params)
  for i, h_BTD in enumerate(np.asarray(sown["intermediates"]["blocks"]["resid"][0])):
    case.compare(f"out/hidden_{i}", h_BTD, LOGITS)
  case.compare("out/logits", logits, LOGITS)
  weight_B = np.asarray(masked_diffusion.noise_rate(t_B) / jnp.expm1(sigma_B))
  case.compare(
    "out/nlls", (-np.asarray(log_prob_BT) * weight_B[:, None])[masked_BT & inside_BT], PER_TOKEN
  )
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)

  if not (case.has("out/sample_x") or case.has("out/sample_t")):
    return
  dt = diffusion_sampler.step_size(c["max_steps"])
  x_BT, seen_BT, times, found = (
    jnp.asarray(case["in/sample_init"]),
    np.asarray(case["in/sample_mask"], bool),
    [],
    [],
  )
  forward = jax.jit(
    lambda x, t: model.apply({"params": params}, x, masked_diffusion.total_noise(t), seen_BT)
  )
  for i in range(c["max_steps"]):
    last = i == c["max_steps"] - 1
    t_B = jnp.full(len(x_BT), (1 - dt) if last else 1 - i * dt)
    logits_BTV = forward(x_BT, t_B)
    x_BT = (
      diffusion_sampler.finish(logits_BTV, x_BT, c["mask"])
      if last
      else diffusion_sampler.ancestral(
        logits_BTV, x_BT, t_B, dt, c["mask"], jnp.asarray(case["in/sample_u"][i])
      )
    )
    times.append(np.asarray(t_B))
    found.append(np.asarray(x_BT))
  case.compare("out/sample_t", np.stack(times), PER_TOKEN)
  case.compare("out/sample_x", np.stack(found))
