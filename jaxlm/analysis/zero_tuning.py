"""ZeroTuning (arXiv 2505.11739): the first key's attention times gamma, per layer and head.

a_0' = gamma a_0 / D, a_j' = a_j / D, D = 1 + (gamma - 1) a_0. For softmax this is log gamma added to
the first key's scores, which the fused kernels do by key (site `key_bias`). A kernel that is not
normalised has D = 1; its weights are scaled (site `attention`).

Axes: L layers, B batch, T time, S keys, N heads.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxlm.analysis.activations import sites
from jaxlm.analysis.opened import intervene
from jaxlm.analysis.probes import stacks_of
from jaxlm.config import ConfigError
from jaxlm.layers.similarity_attention import SimilarityAttentionConfig
from jaxlm.layers.taps import Edit

UP, DOWN = 1.5, 0.6  # the two gammas that tell which way a head works


def first_key(cfg, gamma_LN, length: int) -> dict:
  """The changes for `intervene`: {} where every gamma is 1, so that the program is the plain one.

  gamma: float, or an array that broadcasts to (layers, heads). length: of the rows. ConfigError: no
  attention, gamma <= 0, or a normalised similarity other than exp.
  """
  full = next(iter(stacks_of(cfg, "key_bias", "zero tuning").values()))
  L, N = sites(cfg)[full], cfg.mixers[0].num_heads
  gamma_LN = np.broadcast_to(np.asarray(gamma_LN, np.float64), (L, N))
  if not (gamma_LN > 0).all():
    raise ConfigError(f"gamma = {gamma_LN.min():g}: wanted more than 0")
  first_S = np.arange(length) == 0
  changes = {}
  for layer in np.flatnonzero((gamma_LN != 1).any(axis=1)):
    gamma_N, mixer = gamma_LN[layer], cfg.mixers[layer]
    if not _of_softmax(mixer):
      scale = np.where(first_S[None, None, :], gamma_N[:, None, None], 1.0)
      changes[full.replace("key_bias", "attention"), int(layer)] = Edit(scale=scale)
    else:
      changes[full, int(layer)] = Edit(add=np.where(first_S[:, None], np.log(gamma_N), 0.0))
  return changes


def _of_softmax(mixer) -> bool:
  if not isinstance(mixer, SimilarityAttentionConfig) or mixer.similarity == "exp":
    return True
  if mixer.normaliser == "sum":
    raise ConfigError(
      f"gamma of similarity = {mixer.similarity!r} with normaliser = 'sum' is no bias of the scores; "
      "use similarity 'exp', or normaliser 'none'"
    )
  return False


def reweighted(p_BNTS, gamma_N) -> np.ndarray:
  """The definition, of whole normalised weights: what the bias must equal."""
  gamma = np.asarray(gamma_N, np.float64)[None, :, None]
  p = np.asarray(p_BNTS, np.float64).copy()
  total = 1 + (gamma - 1) * p[..., 0]
  p[..., 0] *= gamma
  return p / total[..., None]


def output_entropy(logits_BTV, weight_BT) -> float:
  """Mean entropy of the next-token distribution, nats, over positions by weight."""
  x = np.asarray(logits_BTV, np.float64)
  x = x - x.max(-1, keepdims=True)
  log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
  entropy_BT = -(np.exp(log_p) * log_p).sum(-1)
  return float((entropy_BT * weight_BT).sum() / weight_BT.sum())


def accuracy(logits_BTV, targets_BT, weight_BT) -> float:
  """Share of targets that are the most probable token, by weight."""
  right = np.asarray(logits_BTV).argmax(-1) == np.asarray(targets_BT)
  return float((right * weight_BT).sum() / weight_BT.sum())


def logits(opened, batch, gamma_LN) -> np.ndarray:
  """The model's logits on {"tokens": ...} with the first key scaled."""
  changes = first_key(opened.config, gamma_LN, np.shape(batch["tokens"])[1])
  out = intervene(opened, {"tokens": batch["tokens"]}, changes)["output"]
  return np.asarray(out, np.float32)


def layer_groups(num_layers: int) -> dict[str, np.ndarray]:
  """bool (layers,) of the early, middle and late third, and of all."""
  thirds = np.array_split(np.arange(num_layers), 3)
  named = zip(("early", "middle", "late"), thirds)
  groups = {name: np.isin(np.arange(num_layers), part) for name, part in named}
  return groups | {"all": np.ones(num_layers, bool)}


def profile(num_layers: int, num_heads: int, worth: Callable[[np.ndarray], float]) -> np.ndarray:
  """bool (layers, heads): whether a head works better up (gamma 1.5) than down (0.6), one at a time.

  worth: gamma (layers, heads) -> what is to be large on the calibration set.
  """
  up = np.zeros((num_layers, num_heads), bool)
  for at in np.ndindex(up.shape):
    gamma = [np.ones(up.shape), np.ones(up.shape)]
    gamma[0][at], gamma[1][at] = UP, DOWN
    up[at] = worth(gamma[0]) > worth(gamma[1])
  return up


def search(grid: Sequence[float], heads_LN, cost: Callable[[np.ndarray], float]) -> float:
  """The gamma of the grid with the least cost, applied to the chosen heads only."""
  costs: Mapping[float, float] = {g: cost(np.where(heads_LN, g, 1.0)) for g in grid}
  return min(costs, key=costs.get)
