r"""Speculative decoding that passes rows of equal length together: EXSPEC (arXiv 2510.22876).

Axes: B batch: the rows of the pool, N rows of a group.

A pool of B rows is decoded; every round takes up to N of them. It takes rows whose caches, the target's
and the draft's, have equal lengths: the first ones of the largest set of such rows. Where no two rows
agree, it takes the shortest rows, whatever their lengths. In the authors' code
a group of equal lengths needs no realignment. Here rows have write indices of their own and nothing is
ever realigned, so that a group is a choice of schedule: the tokens are those of `speculative`.

The authors fill the pool again when a row ends. Here the pool is a batch of `generate` (its batch_size),
and groups get smaller at its end. Sorting prompts by length makes more of them equal.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import checked
from jaxlm.generation.base import Batch
from jaxlm.generation.engine.drafted import ROUNDS, Carry
from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.engine.step import put_rows, take_rows
from jaxlm.generation.engine.unrolled import opened_pair
from jaxlm.generation.sampling import Sampling
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
@checked
class SameLength(Speculative):
  """group: N, rows of a round at most. The other fields are those of `Speculative`."""

  is_default: ClassVar[bool] = False

  model: object
  draft: object = None
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  num_draft: Count = 4
  deterministic: bool = False
  group: Count = 8

  def dispatches(self, params: Mapping, batch: Batch, rounds: int = ROUNDS):
    for carry, _ in self.rounds(params, batch):
      yield carry

  def rounds(self, params: Mapping, batch: Batch) -> Iterator[tuple[Carry, bool | None]]:
    """Yields the carry after the first tokens with None, then after each round, with whether the
    round's rows had equal lengths.
    """
    engine, params = opened_pair(self, params)
    carry = next(super(SameLength, engine).dispatches(params, batch))
    yield carry, None
    room_B = jnp.asarray(batch.room_B)
    while True:
      length_B, pending_B, alive_B = jax.device_get(
        (carry.target.length_B, carry.num_pending_B, carry.committed.alive_B)
      )
      if not alive_B.any():
        return
      at_N, same = choose(length_B, pending_B, alive_B, self.group)
      carry = _round_of(params, carry, jnp.asarray(at_N), batch.keys_B, room_B, engine=engine)
      yield carry, same


def choose(length_B, pending_B, alive_B, size: int) -> tuple[np.ndarray, bool]:
  """(int32 (size,) rows of the next round, B where there is none; whether their lengths are equal).

  length_B: tokens in the target's cache; pending_B: by how many the draft's cache is behind the text.
  bool alive_B: one at least is.
  """
  alive = np.flatnonzero(alive_B)
  keys = np.stack([length_B[alive], pending_B[alive]], axis=1)
  kinds, of, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
  same = len(alive) == 1 or int(counts.max()) > 1
  if same:  # of equally large sets, the shorter rows
    rows = alive[of.reshape(-1) == int(np.argmax(counts))][:size]
  else:
    rows = alive[np.argsort(length_B[alive], kind="stable")][:size]
  return np.pad(rows, (0, size - len(rows)), constant_values=len(alive_B)).astype(np.int32), same


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=1)
def _round_of(params, carry: Carry, at_N, keys_B, room_B, *, engine: SameLength) -> Carry:
  """One round of the rows at_N; the others stay as they are, and a place outside is no row."""
  B = len(room_B)
  from_N = jnp.minimum(at_N, B - 1)
  done = jax.tree.map(lambda x: x[from_N], carry.committed)
  done = done._replace(alive_B=done.alive_B & (at_N < B))
  group = Carry(
    take_rows(engine.model, carry.target, from_N),
    take_rows(engine.draft, carry.draft, from_N),
    carry.pending_B2[from_N],
    carry.num_pending_B[from_N],
    done,
  )
  keys_N = jax.vmap(jax.random.fold_in)(keys_B[from_N], done.num_new_B)
  group = engine.round(params, group, keys_N, room_B[from_N])

  def put(x, new):
    return x.at[at_N].set(new, mode="drop")

  return Carry(
    put_rows(engine.model, carry.target, group.target, at_N),
    put_rows(engine.draft, carry.draft, group.draft, at_N),
    put(carry.pending_B2, group.pending_B2),
    put(carry.num_pending_B, group.num_pending_B),
    jax.tree.map(put, carry.committed, group.committed),
  )
