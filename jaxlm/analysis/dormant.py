"""Active and dormant heads (arXiv 2410.13835): where queries of one kind look, and what is left
without a head, a value or an MLP's output at the first token.

Axes: B batch, T time, N heads.
"""

from collections.abc import Mapping

import numpy as np

from jaxlm.layers.taps import Edit


def without_head(layer: int, head: int, num_heads: int) -> dict:
  """The head's output is 0."""
  keep_N1 = (np.arange(num_heads) != head).astype(np.float32)[:, None]
  return {("heads", layer): Edit(scale=keep_N1)}


def diagonal_head(layer: int, head: int, num_heads: int, length: int) -> dict:
  """Every query of the head looks at itself alone."""
  mask_NTS = np.zeros((num_heads, length, length), bool)
  mask_NTS[head] = True
  return {("attention", layer): Edit(value=np.eye(length, dtype=np.float32), mask=mask_NTS)}


def zero_at_first(site: str, layer: int, length: int, trailing: int) -> dict:
  """What flows at `site` of the first token is 0. trailing: axes of the site behind time."""
  keep_T = (np.arange(length) > 0).astype(np.float32)
  return {(site, layer): Edit(scale=keep_T.reshape(length, *[1] * trailing))}


def by_kind(x_BNT, trigger_BT, valid_BT) -> Mapping[str, float]:
  """Mean over heads and queries, of trigger queries and of the others; nan where there are none."""
  x_BT = np.asarray(x_BNT, np.float64).mean(axis=1)
  valid = np.asarray(valid_BT, bool)

  def mean(mask):
    return float(x_BT[mask].mean()) if mask.any() else float("nan")

  trigger = np.asarray(trigger_BT, bool)
  return {"trigger": mean(valid & trigger), "other": mean(valid & ~trigger)}


def logit_lead(p_BNTS) -> np.ndarray:
  """s_i0 - mean over 1 <= j <= i of s_ij, (B, N, T), from softmax weights; 0 at the first query."""
  p = np.asarray(p_BNTS, np.float64)
  log_p = np.log(np.maximum(p, 1e-30))
  T = p.shape[-1]
  seen = np.tri(T, dtype=bool)
  seen[:, 0] = False
  mean = (log_p * seen).sum(-1) / np.maximum(seen.sum(-1), 1)
  return np.where(np.arange(T) > 0, log_p[..., 0] - mean, 0.0)
