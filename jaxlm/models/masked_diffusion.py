"""The masked-diffusion baseline: a bidirectional transformer conditioned on the noise level by
adaptive norms.

Axes: B batch, T position, D d_model, C conditioning width, V vocab. docs/specs/ilm.md, section 6.2.

  c = silu(MLP(sinusoid(sigma)));   (s_1, b_1, g_1, s_2, b_2, g_2) = W c, per layer
  r = x^ if official else x,  x^ = norm(x)(1 + s_1) + b_1;   y = r + g_1 attn(x^);   out = y + g_2
  mlp(norm(y)(1 + s_2) + b_2)
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.kernels.attention import BlockDiffusionMask
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EMBEDDINGS, EmbeddingConfig, Head
from jaxlm.layers.lexinvariant import check_embedding
from jaxlm.layers.mixer import Context
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.layers.positions import POSITIONS, NoPosition
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.stack import scan_layers
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import weights, zeros
from jaxlm.models.base import ModelConfig, StackPart, check_rows
from jaxlm.parameter import SPARED, matrix
from jaxlm.ranges import Count, Dtype, Layers

SINUSOIDS = 256


@dataclasses.dataclass(frozen=True)
@checked
class MaskedDiffusionConfig(ModelConfig):
  """residual: "official" overwrites the residual stream with the modulated norm before attention,
  as the release does; "corrected" keeps it. d_cond: width of the conditioning. position: of the
  attention. absolute: added to the embedding; the release has none. loss_chunk: as of the decoder.
  """

  scores: ClassVar[str] = "masked_tokens"

  vocab_size: Count
  d_model: Count
  num_layers: Layers
  num_heads: Count
  d_cond: Count = 128
  mlp: MLPConfig = MLPConfig(activation="relu", use_bias=True)
  position: Annotated[object, POSITIONS] = RoPE()
  absolute: Annotated[object, POSITIONS] = NoPosition()
  embedding: Annotated[object, EMBEDDINGS] = EmbeddingConfig()
  residual: Literal["official", "corrected"] = "official"
  dtype: Dtype = "float32"
  loss_chunk: Count | None = None

  def __post_init__(self):
    self.position.check(self.mixer.heads(self.d_model))
    check_embedding(self.embedding, tie_embeddings=False)

  @property
  def mixer(self) -> AttentionConfig:
    return AttentionConfig(self.num_heads, position=self.position, causal=False)

  @property
  def mixers(self) -> tuple:
    return (self.mixer,) * self.num_layers

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    return {"blocks": (StackPart(("blocks",), tuple(range(self.num_layers))),)}

  @property
  def norm(self) -> LayerNormConfig:
    return LayerNormConfig(use_bias=False)

  @property
  def max_len(self) -> int | None:
    lengths = (self.position.max_positions, self.absolute.max_positions)
    return min((n for n in lengths if n is not None), default=None)

  def inputs(self, batch) -> tuple:
    """Tokens and one noise level per row."""
    return batch["tokens"], jax.ShapeDtypeStruct(batch["tokens"].shape[:1], jnp.float32)

  def build(self) -> nn.Module:
    return MaskedDiffusionNetwork(self)

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0) -> "BlockState":
    """The keys and values of finished blocks, none yet; at most max_len tokens per row may follow.

    Nothing goes back: a pass that is not to be kept leaves its state behind.
    """
    mixer = dataclasses.replace(self.mixer, causal=True)  # a cache is one whoever looks at it
    layer = mixer.init_state(self.d_model, batch_size, max_len, self.dtype)
    layers = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_layers, *x.shape)), layer)
    return BlockState(jnp.zeros(batch_size, jnp.int32), layers)


class BlockState(NamedTuple):
  """length_B: int32, tokens of finished blocks. layers: their keys and values."""

  length_B: jax.Array
  layers: Any


def modulation(module, c_BC, count: int, d_model: int, dtype):
  """`count` arrays (B, 1, D), linear in c; zero at the start."""
  w = weights(module, dtype, init=zeros)
  w_CED = w(
    "w_mod", (c_BC.shape[-1], count, d_model), (None, None, "embed"), role=matrix((0,), (1, 2))
  )
  m_BED = (
    jnp.einsum("bc,ced->bed", c_BC, w_CED)
    + w("b_mod", (count, d_model), (None, "embed"), role=SPARED)[None]
  )
  return [m_BED[:, i, None] for i in range(count)]


class AdaptiveBlock(nn.Module):
  cfg: MaskedDiffusionConfig

  @nn.compact
  def __call__(self, x_BTD, context, c_BC, state=None):
    cfg = self.cfg
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation(self, c_BC, 6, cfg.d_model, cfg.dtype)
    in_BTD = cfg.norm.build(cfg.dtype, "norm")(x_BTD) * (1 + scale1) + shift1
    in_BTD = tap(self, "attn_in", in_BTD)
    y_BTD, state = cfg.mixer.build(cfg.d_model, cfg.dtype, "mixer")(in_BTD, context, state)
    x_BTD = (in_BTD if cfg.residual == "official" else x_BTD) + gate1 * tap(self, "attn_out", y_BTD)
    h_BTD = cfg.norm.build(cfg.dtype, "mlp_norm")(x_BTD) * (1 + scale2) + shift2
    h_BTD = tap(self, "mlp_in", h_BTD)
    y_BTD = cfg.mlp.build(cfg.d_model, cfg.dtype, "mlp")(h_BTD, 2 * cfg.num_layers)
    x_BTD = x_BTD + gate2 * tap(self, "mlp_out", y_BTD)
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act"))
    return tap(self, "resid", x_BTD), state


class NoiseEmbedding(nn.Module):
  """c = silu(W_2 silu(W_1 [cos(sigma f), sin(sigma f)] + b_1) + b_2),  f_i = 10000^(-i / 128)."""

  cfg: MaskedDiffusionConfig

  @nn.compact
  def __call__(self, sigma_B):
    half, C, w = SINUSOIDS // 2, self.cfg.d_cond, weights(self, self.cfg.dtype)
    phase_BE = (
      sigma_B[:, None].astype(jnp.float32)
      * 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)[None]
    )
    x_BE = jnp.concatenate([jnp.cos(phase_BE), jnp.sin(phase_BE)], axis=1).astype(self.cfg.dtype)

    def dense(x, name, size):
      return (
        jnp.einsum("be,ec->bc", x, w(f"w_{name}", (size, C), (None, None), role=matrix()))
        + w(f"b_{name}", (C,), (None,), init=zeros)[None]
      )

    return jax.nn.silu(dense(jax.nn.silu(dense(x_BE, "in", SINUSOIDS)), "out", C))


class AbsolutePosition(nn.Module):
  cfg: MaskedDiffusionConfig

  @nn.compact
  def __call__(self, x_BTD, context):
    return self.cfg.absolute.add(self, x_BTD, context)


class FinalNorm(nn.Module):
  cfg: MaskedDiffusionConfig

  @nn.compact
  def __call__(self, x_BTD, c_BC):
    cfg = self.cfg
    shift, scale = modulation(self, c_BC, 2, cfg.d_model, cfg.dtype)
    return cfg.norm.build(cfg.dtype, "norm")(x_BTD) * (1 + scale) + shift


class MaskedDiffusionNetwork(nn.Module):
  """logits of every position's clean token, given the noise level sigma_B; `score` for the loss."""

  cfg: MaskedDiffusionConfig

  def setup(self):
    cfg = self.cfg
    self.embed = cfg.embedding.build(cfg.vocab_size, cfg.d_model, cfg.dtype)
    self.absolute = AbsolutePosition(cfg)
    self.noise = NoiseEmbedding(cfg)
    self.blocks = scan_layers(AdaptiveBlock, cfg.num_layers, (nn.broadcast, nn.broadcast, 0))(cfg)
    self.final_norm = FinalNorm(cfg)
    self.head = Head(cfg.vocab_size, cfg.d_model, cfg.dtype)

  def __call__(self, tokens_BT, sigma_B, keys_BT=None):
    """float32 logits (B, T, V). keys_BT: bool, tokens that are looked at; None = all.

    Queries are all.
    """
    return self.head.logits(*self._hidden(tokens_BT, sigma_B, keys_BT))

  def score(self, tokens_BT, targets_BT, sigma_B, keys_BT=None):
    """(log p(target), log z), float32 (B, T)."""
    h_BTD, context = self._hidden(tokens_BT, sigma_B, keys_BT)
    return self.head.score(h_BTD, targets_BT, context, chunk=self.cfg.loss_chunk)

  def plain_context(self, tokens_BT) -> Context:
    """Of whole rows in which every token is seen."""
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    return Context(
      jnp.ones_like(tokens_BT), positions_BT, depth=2 * self.cfg.num_layers, packed=False
    )

  def block_logits(self, noisy_BT, clean_BT, block_len_B):
    """float32 logits (B, T, V) of each place of noisy_BT given its block and the clean blocks before
    it, in one pass over both copies. The noise level is not told: a block is what it is.
    """
    return self.head.logits(*self._two_copies(noisy_BT, clean_BT, block_len_B))

  def block_score(self, noisy_BT, clean_BT, block_len_B):
    """(log p(clean), log z), float32 (B, T), as `block_logits` has them."""
    h_BTD, context = self._two_copies(noisy_BT, clean_BT, block_len_B)
    return self.head.score(h_BTD, clean_BT, context, chunk=self.cfg.loss_chunk)

  def _two_copies(self, noisy_BT, clean_BT, block_len_B):
    B, T = noisy_BT.shape
    row_len_B = jnp.full(B, T, jnp.int32)
    h_BTD, context, _ = self._run(
      jnp.concatenate([noisy_BT, clean_BT], axis=1),
      jnp.zeros(B, jnp.float32),
      positions_BT=jnp.broadcast_to((jnp.arange(2 * T) % T)[None], (B, 2 * T)),
      structure=BlockDiffusionMask(block_len_B, row_len_B),
    )
    return h_BTD[:, :T], context

  def extend(self, tokens_BT, state: BlockState, segment_ids_BT=None):
    """(logits_BTV, state) with one more block of each row, which sees itself and what was kept.

    Tokens of segment 0 are passed over. A pass over noise is made for its logits, and its state is
    left; the state of the pass over the clean block is kept.
    """
    check_rows(tokens_BT, state)
    valid_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else (segment_ids_BT != 0) * 1
    h_BTD, context, layers = self._run(
      tokens_BT,
      jnp.zeros(tokens_BT.shape[0], jnp.float32),
      positions_BT=state.length_B[:, None] + jnp.maximum(jnp.cumsum(valid_BT, axis=1) - 1, 0),
      segment_ids_BT=valid_BT.astype(jnp.int32),
      layers=state.layers,
    )
    length_B = state.length_B + jnp.sum(valid_BT, axis=1, dtype=jnp.int32)
    return self.head.logits(h_BTD, context), BlockState(length_B, layers)

  def _run(
    self,
    tokens_BT,
    sigma_B,
    *,
    positions_BT,
    structure=None,
    segment_ids_BT=None,
    layers=None,
  ):
    """(what the head reads, context, states of the layers)."""
    cfg = self.cfg
    context = Context(
      jnp.ones_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT,
      positions_BT,
      depth=2 * cfg.num_layers,
      packed=True,
      structure=structure,
      streaming=layers is not None,
    )
    c_BC = self.noise(sigma_B)
    x_BTD = self.absolute(self.embed.encode(tokens_BT, context), context)
    x_BTD, layers = self.blocks(tap(self, "embedded", x_BTD), context, c_BC, layers)
    return tap(self, "final", self.final_norm(x_BTD, c_BC)), context, layers

  def _hidden(self, tokens_BT, sigma_B, keys_BT):
    cfg, (B, T) = self.cfg, tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    keys = None if keys_BT is None else (keys_BT != 0).astype(jnp.int32)
    context = Context(
      jnp.ones_like(tokens_BT),
      positions_BT,
      depth=2 * cfg.num_layers,
      packed=keys is not None,
      key_segment_ids_BT=keys,
    )
    c_BC = self.noise(sigma_B)
    x_BTD = self.absolute(self.embed.encode(tokens_BT, context), context)
    x_BTD = tap(self, "embedded", x_BTD)
    x_BTD, _ = self.blocks(x_BTD, context, c_BC, None)
    return tap(self, "final", self.final_norm(x_BTD, c_BC)), context
