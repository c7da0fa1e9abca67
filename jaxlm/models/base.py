"""What every model config declares, so that objectives, commands and counters ask instead of
guessing.

Axes: B batch, T time.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError

PyTree = Any


class StackPart(NamedTuple):
  """Layers that are scanned together: the module's path, and the number of each entry of its
  leading axis.
  """

  path: tuple[str, ...]
  layers: tuple[int, ...]


class ModelConfig:
  """Base of model configs (frozen dataclasses).

  scores: what the network gives probabilities (or values) of; an objective names the one that it
  needs:
    "next_token", "inserted_tokens", "masked_tokens", "target_sequence" or "views".
  float32_params: names of parameters that the model computes with in float32, whatever
  `train.gather_dtype` says.
  flops_from_trace: training FLOPs are counted in the traced forward pass, not by parameters.
  dtype: of the computation. remat: which activations are computed again in the backward pass.
  embedding: how tokens become vectors, None for a model without a choice. tie_embeddings: the head
  is the embedding's table.
  num_chunkings: stages that shorten the sequence, of an H-Net. Configs that have these as fields
  give them a default.
  """

  scores: ClassVar[str] = "next_token"
  float32_params: ClassVar[tuple[str, ...]] = ()
  flops_from_trace: ClassVar[bool] = False
  dtype = "float32"
  remat = "none"
  embedding = None
  tie_embeddings = False
  num_chunkings = 0

  @property
  def mixers(self) -> tuple:
    """The mixer of each layer, where the FLOP count by parameters has to add attention's products."""
    return ()

  @property
  def max_len(self) -> int | None:
    """Longest sequence that the model can read; None: any."""
    return None

  @property
  def decodes(self) -> bool:
    """Whether the model has `init_state` and `extend`, and so generates token by token."""
    return False

  @property
  def why_unstructured(self) -> str | None:
    """Why it cannot read draft trees and set prompts, as the end of 'this model ..'; None: it can."""
    return "is no decoder of attention alone"

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    """{name of a stack: its parts}, for those who read or edit activations by layer
    (`jaxlm.analysis`).
    """
    return {}

  def check(self, cfg) -> None:
    """Raises ConfigError for what does not fit the other sections of `cfg` (a RunConfig)."""

  def rolled(self) -> "ModelConfig":
    """The same model with its layers in loops (`unroll` = 1): the same parameters from the same key,
    and the least to compile.
    """
    named = {field.name for field in dataclasses.fields(self)}
    return dataclasses.replace(self, unroll=1) if "unroll" in named else self

  def build(self) -> nn.Module:
    raise NotImplementedError(f"{type(self).__name__} builds no module")

  def inputs(self, batch) -> tuple:
    """The positional arguments of `__call__`, from a batch (arrays or `jax.ShapeDtypeStruct`s)."""
    return tuple(batch[name] for name in ("tokens", "segment_ids", "positions") if name in batch)

  def example(self, length: int = 8) -> dict[str, jax.ShapeDtypeStruct]:
    """The smallest batch that `inputs` reads: one row of `length` tokens.

    Parameters do not depend on it.
    """
    return {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)}

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0) -> PyTree:
    """The decoding state before the first token, where the model `decodes`.

    At most max_len tokens per row may follow; each row can go back by up to `rewindable` of them.
    """
    raise NotImplementedError(f"{type(self).__name__} has no decoding state")

  def rewind(self, state: PyTree, length_B) -> PyTree:
    """The state when each row had length_B tokens (int32), exactly; a shorter row stays as it is.

    ConfigError: a state that was begun without `rewindable`. ValueError: a length that is no longer
    kept; where values are traced, the row goes to the oldest that is, and the state's `length_B`
    says so.
    """
    raise NotImplementedError(f"{type(self).__name__} has no decoding state")

  def train_flops_per_token(self, seq_len: int) -> float | None:
    """FLOPs of one token, forward and backward; None: counted by parameters
    (`jaxlm.evaluation.flops`).
    """
    return None


def check_rows(tokens_BT, state) -> None:
  """ConfigError for tokens of another number of rows than the decoding state has (`length_B`)."""
  rows, cached = tokens_BT.shape[0], state.length_B.shape[0]
  if rows != cached:
    raise ConfigError(
      f"{rows} rows of tokens for a decoding state of {cached} rows; begin the state with init_state({rows}, ...), or "
      f"pick its rows with generation.engine.step.take_rows"
    )


def init(cfg: ModelConfig, key, batch=None) -> PyTree:
  """The parameter tree, its leaves boxed with their logical axes. batch: abstract or concrete;
  None: `cfg.example()`.

  Traceable: `jax.eval_shape(lambda: init(cfg, key))` allocates nothing.
  """
  arguments = cfg.inputs(cfg.example() if batch is None else batch)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments)
  return cfg.build().init({"params": key, "dropout": key}, *zeros)["params"]


def abstract_params(cfg: ModelConfig) -> PyTree:
  """Shapes and dtypes of the parameters, boxed with their logical axes. Nothing is allocated.

  Call it outside any mesh: boxes of abstract values cannot be constrained.
  """
  return jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
