"""View synthesis with LaCT: posed images become tokens, the input views teach the fast weights,
every view reads them.

Axes: B batch, S views, Y rows, X columns, T tokens (view, row, column of patches), P features of a
patch, D d_model, N attention heads, H their width, M fast-weight heads, G their width, F inner
width, L layers (stacked parameters).
"""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.attention import attention
from jaxlm.kernels.fast_weight_chunk import Rule, fast_weight_chunk, read, view_synthesis
from jaxlm.kernels.newton_schulz import coefficients
from jaxlm.layers.fast_weights import PER_HEAD
from jaxlm.layers.lact import unit
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig, rms_norm
from jaxlm.layers.stack import scan_layers
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, ones, weights, zeros
from jaxlm.models.base import ModelConfig, StackPart
from jaxlm.ranges import Count, Dtype, Layers, Natural, Positive

QK_EPS = 1.1920929e-07  # float32's machine epsilon, the default of the official norm
PLUCKER = 9  # channels of a ray: origin, direction, origin x direction


@dataclasses.dataclass(frozen=True)
@checked
class NVSConfig(ModelConfig):
  """patch: pixels of a token's side. head_dim: of the attention within a view. fast_head_dim:
  default d_model.

  expansion: inner width of the fast weights over their head width. mlp_expansion: of the MLP.
  muon_steps: of Newton-Schulz; 0 still divides by the Frobenius norm. base_rate: inner learning
  rate at the start.
  memory: how views are joined: 'fast_weights', or the control 'attention' (every token sees all
  input tokens).
  """

  scores: ClassVar[str] = "views"
  flops_from_trace: ClassVar[bool] = (
    True  # most products are with fast weights, which are no parameters
  )

  d_model: Count = 768
  num_layers: Layers = 24
  patch: Count = 8
  head_dim: Count = 64
  fast_head_dim: Count | None = None
  expansion: Positive = 2.0
  mlp_expansion: Positive = 4.0
  muon_steps: Natural = 5
  base_rate: Positive = 0.01
  memory: Literal["fast_weights", "attention"] = "fast_weights"
  remat: bool = False
  dtype: Dtype = "float32"

  def __post_init__(self):
    for name, width in (("head_dim", self.head_dim), ("fast_head_dim", self.fast_width)):
      if width < 1 or self.d_model % width:
        raise ConfigError(f"{name} = {width} does not divide d_model = {self.d_model}")

  @property
  def fast_width(self) -> int:
    return self.fast_head_dim or self.d_model

  @property
  def inner_width(self) -> int:
    return int(self.fast_width * self.expansion)

  @property
  def rule(self) -> Rule:
    low = None if self.dtype == "float32" else self.dtype
    # Row norms are constants here, unlike in the language model.
    return Rule(
      muon=coefficients("views", self.muon_steps), muon_dtype=low, dtype=low, detach_norms=True
    )

  @property
  def mlp(self) -> MLPConfig:
    return MLPConfig(d_ff=int(self.d_model * self.mlp_expansion), activation="gelu")

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    return {"blocks": (StackPart(("blocks",), tuple(range(self.num_layers))),)}

  def build(self) -> nn.Module:
    return NVS(self)

  def inputs(self, batch) -> tuple:
    """The input views and the poses of the target views, from a batch of `data.scenes`."""
    return views_of(batch, "input"), views_of(batch, "target")._replace(images_BSCYX=None)

  def example(self, length: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """One input and one target view of one patch."""

    def shape(*dims):
      return jax.ShapeDtypeStruct((1, 1, *dims), jnp.float32)

    view = {
      "images": shape(3, self.patch, self.patch),
      "intrinsics": shape(4),
      "poses": shape(4, 4),
    }
    return {f"{role}_{name}": x for role in ("input", "target") for name, x in view.items()}


class Views(NamedTuple):
  """Posed views. images_BSCYX: RGB in [0, 1], None where it is to be found. intrinsics_BS4: fx, fy,
  cx, cy in pixels.
  poses_BS44: camera to world."""

  images_BSCYX: jax.Array | None
  intrinsics_BS4: jax.Array
  poses_BS44: jax.Array


def views_of(batch, role: str) -> "Views":
  """The 'input' or 'target' views of a batch of `data.scenes`."""
  return Views(*(batch[f"{role}_{field}"] for field in ("images", "intrinsics", "poses")))


def rays(intrinsics_BS4, poses_BS44, height: int, width: int):
  """(origin, direction), each (B, S, 3, Y, X): d = E [(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1],
  length 1.
  """
  fx, fy, cx, cy = (intrinsics_BS4[..., i, None, None] for i in range(4))
  x = (jnp.arange(width) + 0.5)[None, None, None]
  y = (jnp.arange(height) + 0.5)[None, None, :, None]
  x, y = jnp.broadcast_arrays((x - cx) / fx, (y - cy) / fy)
  direction = jnp.einsum(
    "bsij,bsjyx->bsiyx", poses_BS44[..., :3, :3], jnp.stack([x, y, jnp.ones_like(x)], 2)
  )
  direction = direction / jnp.linalg.norm(direction, axis=2, keepdims=True)
  origin = jnp.broadcast_to(poses_BS44[..., :3, 3, None, None], direction.shape)
  return origin, direction


def pixels(views: Views, height: int, width: int):
  """(B, S, 12, Y, X): origin, direction, origin x direction, 2 rgb - 1 (zeros where there is no
  image).
  """
  origin, direction = rays(views.intrinsics_BS4, views.poses_BS44, height, width)
  moment = jnp.cross(origin, direction, axis=2)
  image = jnp.zeros_like(origin) if views.images_BSCYX is None else 2 * views.images_BSCYX - 1
  return jnp.concatenate([origin, direction, moment, image], 2)


def patchify(x_BSCYX, patch: int):
  """(B, T, P): tokens in order (view, row, column), features in order (row, column, channel)."""
  B, S, C, Y, X = x_BSCYX.shape
  x = x_BSCYX.reshape(B, S, C, Y // patch, patch, X // patch, patch)
  return x.transpose(0, 1, 3, 5, 4, 6, 2).reshape(B, S * (Y // patch) * (X // patch), -1)


def unpatchify(x_BTP, patch: int, num_views: int, height: int, width: int):
  """The inverse of `patchify`."""
  x = x_BTP.reshape(x_BTP.shape[0], num_views, height // patch, width // patch, patch, patch, -1)
  return x.transpose(0, 1, 6, 2, 4, 3, 5).reshape(x_BTP.shape[0], num_views, -1, height, width)


def image_size(cfg: NVSConfig, images_BSCYX) -> tuple[int, int]:
  height, width = images_BSCYX.shape[-2:]
  if height % cfg.patch or width % cfg.patch:
    raise ConfigError(
      f"images of {height} x {width} pixels are not whole patches of {cfg.patch}; resize or crop them"
    )
  return height, width


class NVS(nn.Module):
  """rgb = sigmoid(head(norm(blocks(norm(embed(patches)))))). Weights of all blocks are stacked."""

  cfg: NVSConfig

  def setup(self):
    cfg = self.cfg
    self.embed = PatchEmbedding(cfg)
    block = nn.remat(Block, prevent_cse=False, static_argnums=(2, 3)) if cfg.remat else Block
    self.blocks = scan_layers(block, cfg.num_layers, (nn.broadcast, nn.broadcast, 0))(cfg)
    self.head = PatchHead(cfg)

  def __call__(self, inputs: Views, targets: Views):
    """The target views, (B, S, 3, Y, X) in [0, 1]. Inputs and targets in one pass."""
    height, width = image_size(self.cfg, inputs.images_BSCYX)
    given, wanted = self._tokens(inputs, height, width), self._tokens(targets, height, width)
    per_view = given.shape[1] // inputs.poses_BS44.shape[1]
    x_BTD, _ = self.blocks(jnp.concatenate([given, wanted], 1), per_view, given.shape[1], None)
    return self._images(x_BTD[:, given.shape[1] :], targets, height, width)

  def reconstruct(self, inputs: Views):
    """What the input views taught: the fast weights of every layer, constant in the number of
    views.
    """
    self._needs_fast_weights("reconstruct")
    height, width = image_size(self.cfg, inputs.images_BSCYX)
    x_BTD = self._tokens(inputs, height, width)
    return self.blocks(x_BTD, x_BTD.shape[1] // inputs.poses_BS44.shape[1], x_BTD.shape[1], None)[1]

  def render(self, targets: Views, state, height: int, width: int):
    """Views from reconstructed fast weights: equal to `__call__`, at a cost that knows nothing of
    the inputs.
    """
    self._needs_fast_weights("render")
    x_BTD = self._tokens(targets, height, width)
    x_BTD, _ = self.blocks(x_BTD, x_BTD.shape[1] // targets.poses_BS44.shape[1], 0, state)
    return self._images(x_BTD, targets, height, width)

  def _needs_fast_weights(self, what):
    if self.cfg.memory != "fast_weights":
      raise ConfigError(
        f"{what} needs memory = 'fast_weights'; {self.cfg.memory!r} keeps no state of constant size"
      )

  def _tokens(self, views, height, width):
    return self.embed(patchify(pixels(views, height, width), self.cfg.patch))

  def _images(self, x_BTD, views, height, width):
    return unpatchify(self.head(x_BTD), self.cfg.patch, views.poses_BS44.shape[1], height, width)


class PatchEmbedding(nn.Module):
  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTP):
    cfg = self.cfg
    w_PD = weights(self, cfg.dtype)("w_in", (x_BTP.shape[-1], cfg.d_model), (None, "embed"))
    x_BTD = _norm(cfg, "norm")(jnp.einsum("btp,pd->btd", x_BTP.astype(cfg.dtype), w_PD))
    return tap(self, "embedded", x_BTD)


class PatchHead(nn.Module):
  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTD):
    cfg = self.cfg
    w_DP = weights(self, cfg.dtype)("w_out", (cfg.d_model, 3 * cfg.patch**2), ("embed", None))
    h_BTD = tap(self, "final", _norm(cfg, "norm")(x_BTD))
    return jax.nn.sigmoid(jnp.einsum("btd,dp->btp", h_BTD, w_DP).astype(jnp.float32))


class Block(nn.Module):
  """x += attention within views; x += memory across views; x += mlp.

  Each reads a LayerNorm of x.
  """

  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTD, per_view: int, num_taught: int, state):
    cfg = self.cfg
    h_BTD = tap(self, "attn_in", _norm(cfg, "norm")(x_BTD))
    x_BTD += tap(self, "attn_out", ViewAttention(cfg, name="attention")(h_BTD, per_view))
    h_BTD = tap(self, "memory_in", _norm(cfg, "memory_norm")(x_BTD))
    if cfg.memory == "attention":
      y_BTD = AcrossViews(cfg, name="memory")(h_BTD, per_view, num_taught)
    else:
      y_BTD, state = FastMemory(cfg, name="memory")(h_BTD, num_taught, state)
    x_BTD += tap(self, "memory_out", y_BTD)
    h_BTD = tap(self, "mlp_in", _norm(cfg, "mlp_norm")(x_BTD))
    # 0.02 / sqrt(3 layers) on what ends a residual branch.
    y_BTD = cfg.mlp.build(cfg.d_model, cfg.dtype, "mlp")(h_BTD, 3 * cfg.num_layers)
    x_BTD += tap(self, "mlp_out", y_BTD)
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act"))
    x_BTD = tap(self, "resid", x_BTD)
    return x_BTD, state


class ViewAttention(nn.Module):
  """Bidirectional softmax attention among the tokens of one view, with RMS-normed q and k."""

  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTD, per_view: int):
    q, k, v, out = _attention_parts(self, self.cfg, x_BTD)

    def by_view(x):
      return x.reshape(-1, per_view, *x.shape[2:])

    o = attention(
      by_view(q),
      by_view(k),
      by_view(v),
      causal=False,
      spec=nn.logical_to_mesh_axes(("batch", None, "heads", None)),
    )
    return out(o.reshape(q.shape))


class AcrossViews(nn.Module):
  """The control: every token sees all input tokens and its own view."""

  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTD, per_view: int, num_taught: int):
    q, k, v, out = _attention_parts(self, self.cfg, x_BTD)
    spec = nn.logical_to_mesh_axes(("batch", None, "heads", None))
    given = attention(
      q[:, :num_taught], k[:, :num_taught], v[:, :num_taught], causal=False, spec=spec
    )

    def rest(x):
      return x[:, num_taught:].reshape(-1, per_view, *x.shape[2:])

    def shared(x):
      return jnp.repeat(x[:, :num_taught], (x.shape[1] - num_taught) // per_view, 0)

    def both(x):
      return jnp.concatenate([shared(x), rest(x)], 1)

    wanted = attention(rest(q), both(k), both(v), causal=False, spec=spec)
    return out(jnp.concatenate([given, wanted.reshape(q.shape[0], -1, *q.shape[2:])], 1))


class FastMemory(nn.Module):
  """Learn the first num_taught tokens, then read with all; or only read, from the state of an
  earlier call.
  """

  cfg: NVSConfig

  @nn.compact
  def __call__(self, x_BTD, num_taught: int, state=None):
    cfg, w, D = self.cfg, weights(self, self.cfg.dtype), self.cfg.d_model
    G, F = cfg.fast_width, cfg.inner_width
    M = D // G

    def project(name):
      return jax.nn.silu(
        jnp.einsum("btd,dmg->btmg", x_BTD, w(name, (D, M, G), ("embed", "heads", "head_dim")))
      )

    q, k, v = unit(project("w_q")), unit(project("w_k")), project("w_v")
    eta = jnp.einsum(
      "btd,dmj->btmj", x_BTD, w("w_rate", (D, M, 3), ("embed", "heads", None))
    ).astype(jnp.float32)
    eta += weights(self)("b_rate", (M, 3), ("heads", None), init=zeros)[None, None]
    eta = jax.nn.softplus(eta + math.log(math.expm1(cfg.base_rate)))

    fast = weights(self)
    shapes = {"w0": (M, F, G), "w1": (M, G, F), "w2": (M, F, G)}
    initial = tuple(
      fast(
        name, shape, ("heads", None, "embed"), init=normal((2 / shape[-1]) ** 0.5), role=PER_HEAD
      )
      for name, shape in shapes.items()
    )

    def by_head(x):
      return jnp.moveaxis(x, 1, 2)

    if state is None:
      initial = tuple(jnp.broadcast_to(m[None], (x_BTD.shape[0], *m.shape)) for m in initial)
      o, after = fast_weight_chunk(
        initial,
        by_head(q),
        by_head(k),
        by_head(v),
        tuple(by_head(eta[..., j, None]) for j in range(3)),
        schedule=view_synthesis(num_taught, x_BTD.shape[1]),
        rule=cfg.rule,
      )
      state = after.current
    else:
      o = read(cfg.rule, state, by_head(q))
    o = rms_norm(
      by_head(o).astype(cfg.dtype), weights(self)("scale", (G,), ("head_dim",), init=ones), 1e-5
    )
    w_o = w(
      "w_o",
      (M, G, D),
      ("heads", "head_dim", "embed"),
      init=normal(0.02 / (3 * cfg.num_layers) ** 0.5),
    )
    return jnp.einsum("btmg,mgd->btd", o, w_o), state


def _norm(cfg, name):
  return LayerNormConfig(use_bias=False).build(cfg.dtype, name)


def _attention_parts(module, cfg, x_BTD):
  """q, k (normed), v, each (B, T, N, H), and the output projection."""
  w, D, H = weights(module, cfg.dtype), cfg.d_model, cfg.head_dim
  N = D // H
  q, k, v = (
    jnp.einsum("btd,dnh->btnh", x_BTD, w(f"w_{x}", (D, N, H), ("embed", "heads", "head_dim")))
    for x in "qkv"
  )
  q, k = (
    rms_norm(x, weights(module)(f"scale_{n}", (H,), ("head_dim",), init=ones), QK_EPS)
    for n, x in (("q", q), ("k", k))
  )
  w_o = w(
    "w_o",
    (N, H, D),
    ("heads", "head_dim", "embed"),
    init=normal(0.02 / (3 * cfg.num_layers) ** 0.5),
  )
  return q, k, v, lambda o: jnp.einsum("btnh,nhd->btd", o, w_o)
