"""The contract of attribution: a question about a model's output, and methods that answer it with a
number per input token.

A method is a frozen dataclass that derives from `Method` and is registered in METHODS. It sees the
model through the question alone, which goes through the taps: `value` sets the site of the
embedding. Axes: B batch, T time, D d_model, V vocab.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.activations import edits, record, sites, traced
from jaxlm.config import ConfigError, Kinds
from jaxlm.layers.taps import Edit

METHODS = Kinds(
  "attribution method",
  {
    "gradient_x_input": "jaxlm.analysis.attribution.gradients:GradientXInput",
    "integrated_gradients": "jaxlm.analysis.attribution.gradients:IntegratedGradients",
    "smooth_gradient": "jaxlm.analysis.attribution.gradients:SmoothGradient",
    "leave_one_out": "jaxlm.analysis.attribution.replacing:LeaveOneOut",
    "reagent": "jaxlm.analysis.attribution.replacing:ReAGent",
    "attention": "jaxlm.analysis.attribution.attention:LastAttention",
    "rollout": "jaxlm.analysis.attribution.attention:Rollout",
    "random": "jaxlm.analysis.attribution.attention:Chance",
  },
)


@dataclasses.dataclass(frozen=True)
class Question:
  """log p(targets_B | tokens of the row), at the position `at` of every row.

  against_B: the value is the difference log p(targets) - log p(against). at: -1 is the last
  position. extra: what else the batch of the model holds.
  """

  config: Any
  params: Any
  tokens_BT: Any
  targets_B: Any
  against_B: Any = None
  at: int = -1
  extra: dict = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    tokens, V = np.asarray(self.tokens_BT), self.config.vocab_size
    if tokens.ndim != 2 or tokens.shape[1] < 1:
      raise ConfigError(
        f"tokens of shape {tokens.shape}: wanted (rows, tokens), at least one token"
      )
    for name in ("targets_B", "against_B"):
      given = getattr(self, name)
      if given is not None and not ((np.asarray(given) >= 0) & (np.asarray(given) < V)).all():
        raise ConfigError(f"{name} = {given}: the vocabulary has tokens 0 .. {V - 1}")

  @functools.cached_property
  def site(self) -> str:
    """The site of the input vectors."""
    for name in ("embed", "encoder_embed"):
      if name in sites(self.config):
        return name
    raise ConfigError(f"{type(self.config).__name__} has no site of input vectors to attribute to")

  def _logits(self, params, tokens_BT, vectors_BTD=None):
    changed = (
      None if vectors_BTD is None else edits(self.config, {self.site: Edit(value=vectors_BTD)})
    )
    batch = {"tokens": tokens_BT} | self.extra
    out = traced(self.config, params, batch, edits=changed)["output"]
    return out[:, self.at].astype(jnp.float32)

  def log_probs(self, params, tokens_BT, vectors_BTD=None):
    """log p(. | row), float32 (B, V). Traceable. vectors: in place of the tokens' own."""
    return jax.nn.log_softmax(self._logits(params, tokens_BT, vectors_BTD))

  def value(self, params, vectors_BTD, tokens_BT=None):
    """What is attributed, float32 (B,), as a function of the input vectors. Traceable."""
    tokens = jnp.asarray(self.tokens_BT if tokens_BT is None else tokens_BT)
    return self.picked(self.log_probs(params, tokens, vectors_BTD))

  def picked(self, log_p_BV):
    def at(tokens_B):
      return jnp.take_along_axis(log_p_BV, jnp.asarray(tokens_B)[:, None], axis=1)[:, 0]

    return at(self.targets_B) - (0.0 if self.against_B is None else at(self.against_B))

  @functools.cached_property
  def vectors(self):
    """The input vectors of the tokens, (B, T, D) or as many positions as the encoder reads."""
    batch = {"tokens": jnp.asarray(self.tokens_BT)} | self.extra
    return record(self.config, self.params, batch, [self.site])[self.site]

  def attention(self) -> list:
    """The attention matrices of all layers whose keys are the tokens, (B, N, queries, T) each: of an
    encoder-decoder those of the decoder's attention to the encoder."""
    name, T = type(self.config).__name__, np.shape(self.tokens_BT)[1]
    full = [n for n in sites(self.config) if n.rsplit("/", 1)[-1] == "attention"]
    if not full:
      raise ConfigError(
        f"the attention of {name} was asked for, and no mixer of this model computes attention weights; "
        "use a gradient method"
      )
    chunked = any(n.rsplit("/", 1)[-1] == "boundary" for n in sites(self.config))
    of_tokens = [n for n in full if not chunked or n.split("/")[0] in ("encoder_0", "decoder_0")]
    if not of_tokens:
      raise ConfigError(
        f"the attention of {name} ({full[0]}) is between chunks, not between the tokens of the text; use a "
        "gradient method"
      )
    full = next((n for n in of_tokens if "cross" in n.split("/")), of_tokens[0])
    batch = {"tokens": jnp.asarray(self.tokens_BT)} | self.extra
    found = record(self.config, self.params, batch, [full])[full]
    if found[0].shape[-1] != T:
      raise ConfigError(
        f"the attention of {name} ({full}) is over {found[0].shape[-1]} kept tokens, not over the {T} tokens "
        "of the text; use a gradient method"
      )
    return found


class Method:
  """Base of methods. signed: whether a negative number means that a token speaks against."""

  signed: ClassVar[bool] = True

  def __call__(self, question: Question, key) -> np.ndarray:
    """float32 (B, T): how much the value depends on each token. key: for methods that draw."""
    raise NotImplementedError(f"{type(self).__name__} attributes nothing")
