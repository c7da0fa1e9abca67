"""Blocks and the stack of them, scanned.

Axes: B batch, T time, D d_model, L layers, G groups of one period.

Layers whose parameters are alike share one stack of leading axis L in layer order, whatever else
differs between them (a window, say), so that the pattern of a model can change without changing its
checkpoints. With one such stack the tree is {norm, mixer, mlp_norm, mlp}; with several it is
{stack_0: {...}, stack_1: {...}}, numbered by first appearance.
"""

import dataclasses
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import NORMS
from jaxlm.layers.taps import STACKED, tap
from jaxlm.ranges import Count

REMAT_POLICIES = {
  "full": None,
  "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "dots": jax.checkpoint_policies.dots_saveable,
}


@dataclasses.dataclass(frozen=True)
@checked
class BlockConfig:
  """What surrounds the mixers.

  residual: "sequential" x += mixer(norm x), x += mlp(norm x); "parallel" x += mixer(norm x) +
  mlp(norm' x);
    "sandwich" sequential, with a norm after each sublayer as well; "post" x += norm mixer(x), x +=
    norm mlp(x).
  remat: what the backward pass recomputes; "minimal" keeps the results of weight matmuls, "dots" of
  all, "full"
    nothing. unroll: layer groups per step of the scan; as many as there are removes the loop.
  residual_dtype: of the residual stream, None = dtype. Norms read it, branches are cast to dtype.
  """

  d_model: Count
  mlp: MLPConfig | None
  norm: Annotated[object, NORMS]
  residual: Literal["sequential", "parallel", "sandwich", "post"] = "sequential"
  remat: Literal["none", "full", "minimal", "dots"] = "none"
  unroll: Count = 1
  dtype: str = "float32"
  residual_dtype: str | None = None


class Block(nn.Module):
  """One mixer and, unless the mixer stands alone, one MLP, with their norms and residual
  connections.

  mlp_follows: whether there is the MLP, None = as the mixer declares. runs: bool (B, T), tokens that
  the block changes; the others pass as they are. None: all.
  """

  cfg: BlockConfig
  mixer: object
  mlp_follows: bool | None = None

  @nn.compact
  def __call__(self, x_BTD, context, state=None, runs_BT=None):
    cfg, stream = self.cfg, self.cfg.residual_dtype or self.cfg.dtype
    mlp_follows = self.mixer.followed_by_mlp if self.mlp_follows is None else self.mlp_follows

    def build(name, x_BTD):
      return cfg.norm.build(stream, name)(x_BTD).astype(cfg.dtype)

    norm, after = (
      build if there else lambda name, x_BTD: x_BTD
      for there in (cfg.residual != "post", cfg.residual in ("sandwich", "post"))
    )

    mixer = self.mixer.build(cfg.d_model, cfg.dtype, "mixer")
    y_BTD, state = mixer(tap(self, "attn_in", norm("norm", x_BTD)), context, state)
    out_BTD = x_BTD + after("norm_out", tap(self, "attn_out", y_BTD)).astype(stream)
    if cfg.mlp is not None and mlp_follows:
      h_BTD = tap(
        self, "mlp_in", norm("mlp_norm", x_BTD if cfg.residual == "parallel" else out_BTD)
      )
      y_BTD = cfg.mlp.build(cfg.d_model, cfg.dtype, "mlp")(h_BTD, context.depth)
      out_BTD = out_BTD + after("mlp_norm_out", tap(self, "mlp_out", y_BTD)).astype(stream)
    if runs_BT is not None:
      out_BTD = jnp.where(runs_BT[..., None], out_BTD, x_BTD)
    out_BTD = tap(self, "resid", nn.with_logical_constraint(out_BTD, ("batch", "seq", "embed_act")))
    return out_BTD, state


class Group(nn.Module):
  """The blocks of one period."""

  cfg: BlockConfig
  mixers: tuple

  @nn.compact
  def __call__(self, x_BTD, context, states):
    block, new_states = _remat(self.cfg), []
    for i, (mixer, state) in enumerate(zip(self.mixers, states)):
      x_BTD, state = block(self.cfg, mixer, name=f"layer_{i}")(x_BTD, context, state)
      new_states.append(state)
    return x_BTD, tuple(new_states)


class Groups(nn.Module):
  """A scan over the whole periods, and the rest of the layers as a group of their own."""

  cfg: BlockConfig
  mixers: tuple  # of every layer
  period: int

  @nn.compact
  def __call__(self, x_BTD, context, states):
    new_states = []
    for (name, mixers, count), state in zip(split(self.mixers, self.period), states):
      group = scan_layers(Group, count, (nn.broadcast, 0), unroll=self.cfg.unroll)(
        self.cfg, mixers, name=name
      )
      x_BTD, state = group(x_BTD, context, state)
      new_states.append(state)
    return x_BTD, tuple(new_states)


def _remat(cfg: BlockConfig):
  # Inside a rolled loop nothing can be merged across the barrier that prevent_cse would cost.
  return (
    Block
    if cfg.remat == "none"
    else nn.remat(Block, policy=REMAT_POLICIES[cfg.remat], prevent_cse=cfg.unroll != 1)
  )


def scan_layers(module, length: int, in_axes, *, unroll: int = 1, dropout: bool = False):
  """`length` layers of one module class as a scan, their parameters and taps stacked in front.

  in_axes: of the arguments behind the carry, nn.broadcast or 0. dropout: layers draw keys of their
  own from "dropout".
  """
  return nn.scan(
    module,
    variable_axes=STACKED,
    split_rngs={"params": True} | ({"dropout": True} if dropout else {}),
    in_axes=in_axes,
    out_axes=0,
    length=length,
    unroll=min(unroll, length),
    metadata_params={nn.PARTITION_NAME: "layers"},
  )


def uniform(cfg: BlockConfig, mixer, count: int, name: str, mlp_follows: bool | None = None):
  """`count` equal layers: `x_BTD, states = layers(x_BTD, context, states)`."""
  layers = scan_layers(_remat(cfg), count, (nn.broadcast, 0), unroll=cfg.unroll)
  return layers(cfg, mixer, mlp_follows, name=name)


def split(mixers: tuple, period: int):
  """[(name, mixers of the group, number of groups)]: the whole periods, then what is left."""
  count, left = divmod(len(mixers), period)
  parts = [("groups", mixers[:period], count), ("rest", mixers[count * period :], 1)]
  return [part for part in parts if part[1] and part[2]]


def parts(mixers: tuple, period: int) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
  """[(path of a scanned module below the stack, numbers of its layers)]."""
  if period == 1:
    return [((), tuple(range(len(mixers))))]
  out, first = [], 0
  for group, members, count in split(mixers, period):
    out += [
      ((group, f"layer_{i}"), tuple(first + i + g * period for g in range(count)))
      for i in range(len(members))
    ]
    first += count * period
  return out


def stacks(mixers: tuple) -> dict[str, list[int]]:
  """{name of the parameter stack: its layers}, '' if there is one only."""
  layers: dict = {}
  for l, mixer in enumerate(mixers):
    layers.setdefault(mixer.stack_key, []).append(l)
  return {
    "" if len(layers) == 1 else f"stack_{i}": value for i, value in enumerate(layers.values())
  }


def _to_groups(mixers: tuple, period: int, tree):
  """Parameters stacked by kind of layer -> parameters as Groups declares them, with the
  collections' names.
  """

  def convert(params):
    out: dict = {}
    for name, layers in stacks(mixers).items():
      stack, whole = params[name] if name else params, len(mixers) // period
      for group, members, count in split(mixers, period):
        for i in range(len(members)):
          first = i if group == "groups" else whole * period + i
          if first not in layers:
            continue
          rows = [layers.index(first + g * period) for g in range(count)]
          step = rows[1] - rows[0] if count > 1 else 1
          out.setdefault(group, {})[f"layer_{i}"] = jax.tree.map(
            lambda x: x[rows[0] : rows[0] + step * (count - 1) + 1 : step], stack
          )
    return out

  return {name: convert(value) for name, value in tree.items() if value}


def _from_groups(mixers: tuple, period: int, tree):
  """The inverse of _to_groups."""

  def convert(params):
    out, whole = {}, len(mixers) // period
    for name, layers in stacks(mixers).items():

      def place(l):
        return (
          (params["groups"][f"layer_{l % period}"], l // period)
          if l < whole * period
          else (params["rest"][f"layer_{l - whole * period}"], 0)
        )

      rows = [jax.tree.map(lambda x: x[place(l)[1]], place(l)[0]) for l in layers]
      out[name] = jax.tree.map(lambda *xs: jnp.stack(xs), *rows)
    return out.get("", out)

  return {name: convert(value) for name, value in tree.items() if value}


def build(cfg: BlockConfig, mixers: tuple, period: int, name: str, *, init: bool) -> nn.Module:
  """The stack of one block per mixer: `x_BTD, states = stack(x_BTD, context, states)`. init:
  is_initializing().
  """
  if period == 1:
    return uniform(cfg, mixers[0], len(mixers), name)
  mapped = nn.map_variables(
    Groups,
    "params",
    trans_in_fn=lambda tree: _to_groups(mixers, period, tree),
    trans_out_fn=lambda tree: _from_groups(mixers, period, tree),
    init=init,
  )  # else sown values would start it anew
  return mapped(cfg, mixers, period, name=name)


def init_states(
  cfg: BlockConfig, mixers: tuple, period: int, batch_size: int, max_len: int, rewindable: int = 0
):
  """Decoding states in the form that the stack takes and returns, one leading axis per scan."""

  def repeat(count, mixer):
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x[None], (count, *x.shape)),
      mixer.init_state(cfg.d_model, batch_size, max_len, cfg.dtype, rewindable),
    )

  if period == 1:
    return repeat(len(mixers), mixers[0])
  return tuple(
    tuple(repeat(count, mixer) for mixer in members) for _, members, count in split(mixers, period)
  )


def no_states(mixers: tuple, period: int):
  """What a stack takes for a whole sequence."""
  return (
    None
    if period == 1
    else tuple((None,) * len(members) for _, members, _ in split(mixers, period))
  )


def in_layer_order(sown, mixers: tuple, period: int, name: str = "resid") -> list:
  """One array per layer from the intermediates of a stack, sown under `name` by every block."""
  if period == 1:
    return list(sown[name][0])
  layers = []
  for group, members, count in split(mixers, period):
    stacked = [sown[group][f"layer_{i}"][name][0] for i in range(len(members))]
    layers += [x[g] for g in range(count) for x in stacked]
  return layers
