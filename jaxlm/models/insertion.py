"""The insertion language model: a bidirectional transformer that says what to insert where, and
when to stop.

Axes: B batch, T position (slot T lies to the right of token T), D d_model, V vocab, M missing
tokens.

Every logit of an example belongs to one categorical distribution over (slot, token) pairs
(docs/specs/ilm.md, sections 1, 3):

  log p(t, v) = z[t, v] - log sum_{t' open} exp(log_z[t']),   log_z[t] = logsumexp_v z[t, v]

so that the network is a decoder whose attention sees both sides, and the distribution needs its
rows' partitions only.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.layers import stack
from jaxlm.layers.lexinvariant import check_embedding
from jaxlm.layers.mixer import Context
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.models.decoder import Decoder, DecoderConfig, positions_in_segment
from jaxlm.parameter import TABLE, matrix


@dataclasses.dataclass(frozen=True)
class InsertionConfig(DecoderConfig):
  """A decoder's settings, with attention that is not causal.

  stop_head: two logits (stop, continue) read from the first token. slot_embedding: what is known
  about each slot (blocked or open) is added to the token's vector.
  """

  scores: ClassVar[str] = "inserted_tokens"

  tie_embeddings: bool = False
  final_norm: bool = False
  stop_head: bool = True
  slot_embedding: bool = False

  def __post_init__(self):
    super().__post_init__()
    for mixer in self.mixers:
      if mixer.causal:
        raise ConfigError(
          f"mixer {type(mixer).__name__}: a slot is judged by both sides; use attention with causal=False"
        )
    if self.softcap is not None:
      raise ConfigError(f"softcap = {self.softcap}: the joint distribution has none; leave it out")
    check_embedding(self.embedding, self.tie_embeddings, tables="sequence")

  @property
  def decodes(self) -> bool:
    return False  # every insertion changes all states

  def build(self) -> nn.Module:
    return InsertionNetwork(self)

  def init_state(self, batch_size: int, max_len: int):
    raise ConfigError(
      "an insertion model changes all its states with every token: there is no decoding state; "
      "use jaxlm.generation.insertion"
    )


class Slots(NamedTuple):
  """log_z_BT: of each slot; target_BM: logits of the asked (slot, token) pairs; stop_B2: (stop,
  continue) or None.
  """

  log_z_BT: jax.Array
  target_BM: jax.Array
  stop_B2: jax.Array | None


class StopHead(nn.Module):
  """s = W (c + W_2 tanh(W_1 norm(c) + b_1) + b_2), c the first token's last hidden state.

  Index 0 is stop.
  """

  cfg: InsertionConfig

  @nn.compact
  def __call__(self, h_BTD):
    cfg = self.cfg
    c_B1D = h_BTD[:, :1]
    u_B1D = cfg.norm.build(cfg.dtype, "norm")(c_B1D)
    u_B1D = c_B1D + MLPConfig(2 * cfg.d_model, "tanh", use_bias=True).build(
      cfg.d_model, cfg.dtype, "mlp"
    )(u_B1D)
    w_out_2D = weights(self, cfg.dtype)(
      "w_out", (2, cfg.d_model), (None, "embed"), init=normal(0.02), role=matrix((1,), (0,))
    )
    return jnp.einsum("bd,cd->bc", u_B1D[:, 0], w_out_2D, preferred_element_type=jnp.float32)


class InsertionNetwork(Decoder):
  """Methods: `__call__` all logits, `score` what a loss needs, `encode`, `row_log_z`, `row_logits`
  what a sampler needs.

  Arguments of all: segment_ids_BT, 1 where there is a token and 0 behind them; blocked_BT, bool,
  slots known to be closed, read by slot_embedding only; key_segment_ids_BT, see Context (the packed
  loss of the first release); lexicon, see layers.lexinvariant: a row has one table, whatever its
  segments.
  """

  cfg: InsertionConfig

  def setup(self):
    super().setup()
    cfg = self.cfg
    self.stop_head = StopHead(cfg) if cfg.stop_head else None
    if cfg.slot_embedding:
      self.slot_embedding_2D = weights(self, cfg.dtype)(
        "slot_embedding", (2, cfg.d_model), (None, "embed"), init=zeros, role=TABLE
      )

  def __call__(
    self,
    tokens_BT,
    segment_ids_BT=None,
    positions_BT=None,
    blocked_BT=None,
    key_segment_ids_BT=None,
    lexicon=None,
  ):
    """(float32 logits (B, T, V), stop logits (B, 2) or None)."""
    h_BTD, stop_B2 = self._encode(
      tokens_BT, segment_ids_BT, positions_BT, blocked_BT, key_segment_ids_BT, lexicon
    )
    return self.row_logits(h_BTD, lexicon), stop_B2

  def score(
    self,
    tokens_BT,
    slots_BM,
    missing_BM,
    segment_ids_BT=None,
    positions_BT=None,
    blocked_BT=None,
    key_segment_ids_BT=None,
    lexicon=None,
  ) -> Slots:
    """Partitions of all slots and the logits of (slots, missing); never holds (B, T, V) where
    loss_chunk says so.
    """
    h_BTD, stop_B2 = self._encode(
      tokens_BT, segment_ids_BT, positions_BT, blocked_BT, key_segment_ids_BT, lexicon
    )
    h_BMD = jnp.take_along_axis(h_BTD, slots_BM[..., None], axis=1)
    inside_BT = (
      None if segment_ids_BT is None else segment_ids_BT != 0
    )  # half of a batch is what was dropped
    log_z_BT = self.head.log_z(
      h_BTD, _row(h_BTD, lexicon), chunk=self.cfg.loss_chunk, where_BT=inside_BT
    )
    return Slots(log_z_BT, self.head.pick(h_BMD, missing_BM, _row(h_BMD, lexicon)), stop_B2)

  def encode(
    self, tokens_BT, segment_ids_BT=None, positions_BT=None, blocked_BT=None, lexicon=None
  ):
    """(hidden states (B, T, D), stop logits (B, 2) or None)."""
    return self._encode(tokens_BT, segment_ids_BT, positions_BT, blocked_BT, lexicon=lexicon)

  def row_log_z(self, h_BTD, bias_V, open_BT=None, lexicon=None):
    """float32 (B, T), with a bias on every row: a large negative number where a token may not be
    inserted.

    open_BT: bool, slots that are asked for; the others may be 0.
    """
    return self.head.log_z(h_BTD, _row(h_BTD, lexicon), bias_V, self.cfg.loss_chunk, open_BT)

  def row_logits(self, h_BTD, lexicon=None):
    """float32 (B, T, V) of some rows."""
    return self.head.logits(h_BTD, _row(h_BTD, lexicon))

  def _encode(
    self,
    tokens_BT,
    segment_ids_BT=None,
    positions_BT=None,
    blocked_BT=None,
    key_segment_ids_BT=None,
    lexicon=None,
  ):
    """(hidden states (B, T, D), stop logits (B, 2) or None)."""
    cfg = self.cfg
    packed = segment_ids_BT is not None or positions_BT is not None
    segment_ids_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT
    positions_BT = positions_in_segment(segment_ids_BT) if positions_BT is None else positions_BT
    context = Context(
      segment_ids_BT,
      positions_BT,
      depth=2 * cfg.num_layers,
      packed=packed,
      key_segment_ids_BT=key_segment_ids_BT,
    )
    x_BTD = self.embed.encode(tokens_BT, _row(tokens_BT, lexicon))
    if cfg.slot_embedding and (blocked_BT is not None or self.is_initializing()):
      blocked_BT = jnp.zeros_like(tokens_BT, bool) if blocked_BT is None else blocked_BT
      open_D, blocked_D = self.slot_embedding_2D
      # An open slot is the ordinary case: its vector stays what it was at the start (zero).
      x_BTD = x_BTD + jnp.where(
        blocked_BT[..., None], blocked_D[None, None], jax.lax.stop_gradient(open_D)[None, None]
      )
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act"))
    x_BTD, context, _ = self.position(x_BTD, context, None)
    x_BTD = tap(self, "embedded", x_BTD)
    x_BTD, _ = self.blocks(x_BTD, context, stack.no_states(cfg.mixers, cfg.period))
    # The stop head has a norm of its own and reads the stream in front of the final one.
    stop_B2 = self.stop_head(x_BTD) if cfg.stop_head else None
    return tap(self, "final", self.final_norm(x_BTD)), stop_B2


def _row(like_BT, lexicon) -> Context:
  """What the embedding may know of slots or tokens of each row."""
  B, T = like_BT.shape[:2]
  return Context(
    jnp.ones((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32), packed=False, lexicon=lexicon
  )
