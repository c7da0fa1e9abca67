r"""Token distribution shift: where a tuned model's choice differs from its base model's.

Axes: B batch: answers, T positions, V vocab.

o is the tuned model's greedy answer. At each of its positions both models read the same prefix, that of
o, and

  rank_t = 1 + #{v : p_base(v) > p_base(o_t)};   unshifted: 1,   marginal: 2 or 3,   shifted: above 3

(Lin et al., "The Unlocking Spell on Base LLMs", arXiv 2312.01552; AlignTDS). A tie is not a better rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError

CLASSES = ("unshifted", "marginal", "shifted")


class Shift(NamedTuple):
  """By position, NumPy arrays (B, T). rank: int. kind: index into CLASSES. kl: D(tuned || base), nats.
  p_base: of the token.
  """

  rank: np.ndarray
  kind: np.ndarray
  kl: np.ndarray
  p_base: np.ndarray


def token_shift(tuned_BTV, base_BTV, tokens_BT) -> Shift:
  """From the logits of both models in front of each token. ConfigError: different vocabularies."""
  if tuned_BTV.shape != base_BTV.shape:
    raise ConfigError(
      f"the tuned model's logits are over {tuned_BTV.shape[-1]} tokens and the base model's over "
      f"{base_BTV.shape[-1]}: both need one tokenizer, and the same prefixes"
    )
  log_t, log_b = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (tuned_BTV, base_BTV))
  of_token = jnp.take_along_axis(log_b, jnp.asarray(tokens_BT)[..., None], axis=2)
  rank = 1 + jnp.sum(log_b > of_token, axis=2)
  kl = jnp.sum(jnp.where(log_t > -jnp.inf, jnp.exp(log_t) * (log_t - log_b), 0.0), axis=2)
  kind = jnp.where(rank == 1, 0, jnp.where(rank <= 3, 1, 2))
  return Shift(*map(np.asarray, (rank, kind, kl, jnp.exp(of_token[..., 0]))))


def shares(shift: Shift, inside_BT) -> dict[str, float]:
  """Share of each class among the positions of inside_BT (bool), and the mean `kl`."""
  inside = np.asarray(inside_BT, bool)
  n = max(int(inside.sum()), 1)
  out = {name: float(np.sum(inside & (shift.kind == i)) / n) for i, name in enumerate(CLASSES)}
  return out | {"kl": float(np.sum(shift.kl[inside]) / n)}
