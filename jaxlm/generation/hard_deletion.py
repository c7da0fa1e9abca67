"""Hard deletion in two programs: what stands before the gate, one look at the counts, and the rest
at a capacity that fits.

Axes: B batch, L encoder length, C slots, T decoder length, V vocab. docs/specs/mrt5.md, section 6.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.layers.delete_gate import DeleteGateConfig, Mode, apply_gate
from jaxlm.layers.t5 import Keys


def evaluation_mode(cfg) -> Mode:
  """How an encoder-decoder is evaluated: a learned gate deletes hard; the other reductions have no
  other way.
  """
  return Mode(hard=isinstance(cfg.reduction, DeleteGateConfig))


class Front(NamedTuple):
  """What enters the gate's block, and what the gate says of it. count_B: tokens that go on, at
  least one.
  """

  h_BLD: jax.Array
  keys: Keys
  gate_BL: jax.Array
  count_B: jax.Array


class TwoPrograms:
  """Exact for every input: the back program is compiled once per capacity of a few, which end
  at rows * L.

  rows: sequences that share a buffer. multiple: capacities are multiples of it. For one process;
  training on several has the buckets of `jaxlm.objectives.buckets`, whose choice follows from
  globally reduced metrics.
  """

  def __init__(self, model, params, *, rows: int = 1, multiple: int = 128):
    cfg = model.cfg
    if cfg.reduction is None or cfg.reduction.tau is None:
      raise ConfigError(
        "hard deletion needs a reduction that deletes tokens: delete_gate, random or fixed"
      )
    self.model, self.params, self.rows, self.multiple = model, params, rows, multiple
    self.threshold = cfg.reduction.tau
    self.compact_positions = cfg.reduction.layer == 0
    # Parameters are arguments: closed over they would be constants of the program.
    self._jit_front = jax.jit(self._front)
    self._jit_logits = jax.jit(self._logits, static_argnames="capacity")

  def front(self, tokens_BL, valid_BL=None, key=None) -> Front:
    return self._jit_front(self.params, tokens_BL, valid_BL, key)

  def logits(self, front: Front, decoder_tokens_BT, capacity: int):
    return self._jit_logits(
      self.params, front, decoder_tokens_BT, self.threshold, capacity=capacity
    )

  def compile_logits(self, front: Front, decoder_tokens_BT, capacity: int):
    """The back program for arguments or their shapes, for those who read its cost."""
    return self._jit_logits.lower(
      self.params, front, decoder_tokens_BT, self.threshold, capacity=capacity
    ).compile()

  def _front(self, params, tokens_BL, valid_BL=None, key=None) -> Front:
    def run(module):
      h_BLD, keys = module.encode_front(tokens_BL, valid_BL)
      return h_BLD, keys, module.reduction(h_BLD, tokens_BL, keys.valid_BS, Mode()).gate_BL

    rngs = {} if key is None else {"noise": key}
    h_BLD, keys, gate_BL = self.model.apply({"params": params}, rngs=rngs, method=run)
    return Front(h_BLD, keys, gate_BL, jnp.maximum(jnp.sum(gate_BL > self.threshold, axis=1), 1))

  def _logits(self, params, front: Front, decoder_tokens_BT, threshold, capacity: int):
    mode = Mode(True, capacity, rows=self.rows)

    def run(module):
      reduced = apply_gate(
        front.h_BLD,
        front.gate_BL,
        front.keys.valid_BS,
        threshold,
        mode,
        compact_positions=self.compact_positions,
      )
      memory = module.encode_back(front.h_BLD, front.keys, reduced)
      return module._logits(module.decode(decoder_tokens_BT, memory)[0])

    return self.model.apply({"params": params}, method=run)

  def capacity(self, count_B, length: int) -> int:
    """Slots for these counts: the fullest buffer, rounded up to the multiple, at most what there
    is.
    """
    need = int(np.max(np.sum(np.asarray(count_B).reshape(-1, self.rows), axis=1)))
    return min(-(-need // self.multiple) * self.multiple, self.rows * length)

  def __call__(self, tokens_BL, decoder_tokens_BT, valid_BL=None, key=None):
    """(logits_BTV, capacity), with one read of the device in between."""
    front = self.front(tokens_BL, valid_BL, key)
    capacity = self.capacity(front.count_B, tokens_BL.shape[1])
    return self.logits(front, decoder_tokens_BT, capacity=capacity), capacity


def slots(
  counts: np.ndarray, batch_size: int, length: int, how: str, *, multiple: int = 1, rows: int = 4
) -> int:
  """Slots that examples with these kept counts occupy behind the gate, in batches of batch_size.

  how: 'batch' as they come, each batch as wide as its widest row; 'sorted' the same after sorting
  by count (a pool of examples that have passed the front); 'joined' `rows` examples share a buffer.
  """
  counts = np.asarray(counts)[: len(counts) // batch_size * batch_size]
  up = functools.partial(_up, multiple=multiple)
  if how == "joined":
    if batch_size % rows:
      raise ValueError(f"{rows} rows per buffer do not divide a batch of {batch_size}")
    widest = counts.reshape(-1, batch_size // rows, rows).sum(2).max(1)
    return int(np.sum(np.minimum(up(widest), rows * length)) * (batch_size // rows))
  counts = np.sort(counts) if how == "sorted" else counts
  return int(np.sum(np.minimum(up(counts.reshape(-1, batch_size).max(1)), length)) * batch_size)


def _up(x, multiple: int):
  return -(-x // multiple) * multiple
