"""Checks of what trains an H-Net: ratio loss, groups of parameters, initial spread, optimiser
steps.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.interop import hnet
from jaxlm.interop.golden.case import Tolerance
from jaxlm.interop.golden.hnet import FORWARD, GRADIENT, official_config
from jaxlm.layers.chunking import ratio_loss, ratio_sums
from jaxlm.models import hnet_rules


def ratio_and_groups(case):
  """(hnet, ratio_and_groups): the ratio loss and its gradient; learning-rate multipliers and weight
  decay by name; the initialisation's spread."""
  mask_BT = jnp.asarray(case["in/boundary_mask"])

  def loss(p_BT, target):
    return ratio_loss(jnp.sum(mask_BT), jnp.sum(p_BT), mask_BT.size, target)

  targets = case.config["ratio_targets"]
  values, grads = zip(
    *(jax.value_and_grad(loss)(jnp.asarray(case["in/p"]), target) for target in targets)
  )
  case.compare("out/ratio_loss", jnp.stack(values), FORWARD)
  case.compare("out/dratio_dp", jnp.stack(grads), GRADIENT)

  cfg = hnet.read_config(official_config(case))
  table = hnet.entries(cfg)
  want = case.config["param_groups_official"]
  got = parameter_groups(cfg, table, case.config["lr_multiplier"], weight_decay=None)
  case.require("param groups: names", set(got) == set(want), f"{sorted(set(got) ^ set(want))}")
  for entry in table:
    multiplier, decay = got[entry.theirs]
    group = want[entry.theirs]
    same = multiplier == group["lr_multiplier"] and decay == group.get("weight_decay")
    case.require(
      f"param group {entry.theirs}",
      same and list(entry.shape) == group["shape"],
      f"({multiplier}, {decay}, {entry.shape}), wanted {group}",
    )

  # One random draw each: where theirs is 0 the parameter is a constant, elsewhere the spread is
  # near.
  params = nn.unbox(jax.jit(cfg.build().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))[
    "params"
  ]
  for name, value in hnet.export_params(table, params).items():
    std, size = case.config["measured_init_std"][name], value.size
    if size < 100:
      continue  # too few draws for a spread
    case.require(
      f"init {name}",
      abs(value.std() - std) <= 1e-6 + 6 * std / size**0.5,
      f"standard deviation {value.std():.4f}, theirs {std:.4f}",
    )


def parameter_groups(cfg, table, multipliers, weight_decay):
  """{official name: (learning-rate multiplier, weight decay)} by our rules; decay `weight_decay`
  where not exempt.
  """
  rates, exempt = hnet_rules.lr_multipliers(multipliers), hnet_rules.DECAY_OVERRIDES["official"]

  def find(pairs, path, default):
    return next((v for p, v in reversed(pairs) if re.search(p, path)), default)

  groups = {}
  for entry in table:
    answers = {
      (find(rates, path, 1.0), find(exempt, path, weight_decay))
      for rule in entry.rules
      for path in rule.paths
    }
    if len(answers) != 1:
      raise ValueError(f"{entry.theirs}: its parts fall into several groups {answers}")
    groups[entry.theirs] = answers.pop()
  return groups


def train_steps(case):
  """(hnet, train_steps): AdamW with per-stage multipliers and the official weight decay, metrics
  step by step.
  """
  c = case.config
  if c["schedule"] != "constant" or c["grad_clip"] is not None:
    raise NotImplementedError(
      f"schedule {c['schedule']!r}, grad_clip {c['grad_clip']}: the format knows constant, none"
    )
  cfg = hnet.read_config(official_config(case))
  table, module = hnet.entries(cfg), cfg.build()
  params = hnet.import_params(table, case.group("param"), tied=hnet.tied_names(cfg))
  groups, per_path = parameter_groups(cfg, table, c["lr_multiplier"], c["weight_decay"]), {}
  for entry in table:
    per_path |= {path: groups[entry.theirs] for rule in entry.rules for path in rule.paths}
  adam = optax.scale_by_adam(*c["betas"], eps=c["eps"])

  def losses(params, ids_BT):
    # The last position has no target but is routed: it counts in the ratio.
    targets_BT = jnp.pad(ids_BT[:, 1:], ((0, 0), (0, 1)))
    score = module.apply({"params": params}, ids_BT, targets_BT, method="score")
    ce = -jnp.mean(score.log_prob_BT[:, :-1])
    ratios = jnp.stack(
      [ratio_loss(*ratio_sums(i), n) for i, n in zip(score.aux, c["ratio_targets"])]
    )
    fractions = jnp.stack([ratio_sums(i)[0] / ratio_sums(i)[2] for i in score.aux])
    return ce + c["alpha"] * jnp.sum(ratios), (ce, ratios, fractions)

  @jax.jit
  def step(params, state, ids_BT):
    (_, out), grads = jax.value_and_grad(losses, has_aux=True)(params, ids_BT)
    directions, state = adam.update(grads, state, params)

    def update(path, p, d):
      multiplier, decay = per_path[path]
      rate = c["lr"] * multiplier
      return p * (1 - rate * decay) - rate * d

    flat, moves = flatten(params), flatten(directions)
    new = unflatten({path: update(path, flat[path], moves[path]) for path in flat})
    return new, state, (*out, optax.tree.norm(grads))

  state, rows = adam.init(params), []
  for ids_BT in case["in/ids"]:
    params, state, row = step(params, state, jnp.asarray(ids_BT))
    rows.append(row)
  ce, ratios, fractions, norms = (np.stack([np.asarray(row[i]) for row in rows]) for i in range(4))
  case.compare("out/ce", ce, Tolerance(atol=1e-3))
  case.compare("out/ratio_loss", ratios, Tolerance(atol=1e-3))
  case.compare(
    "out/boundary_fraction", fractions, Tolerance(atol=1e-6)
  )  # a quotient of two whole numbers
  case.compare("out/grad_norm", norms, Tolerance(rtol=1e-3))
  for name, value in hnet.export_params(table, params).items():
    case.compare(
      f"out/final_norm/{name}", np.linalg.norm(value.astype(np.float64)), Tolerance(rtol=1e-3)
    )
