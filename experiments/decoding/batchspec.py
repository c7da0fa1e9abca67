"""Batch speculative decoding: does a batch change the answer, and what does it cost?

  python experiments/decoding/batchspec.py --scale smoke|small

Source: Batch Speculative Decoding Done Right, arXiv 2510.22876. Greedy, four draft tokens a round. The
paper realigns ragged rows by moving memory, which takes 40 % of its overhead; here rows have write
indices of their own, so that share is 0 and is not a column. Tokens per second are of this machine; the draft's
share of a round's time is measured on a round in the middle, the rest is the target's pass and the bookkeeping.
The last row takes rows of equal length together out of 16 (EXSPEC), by which the paper avoids realignment.
"""

from experiments.decoding.pair import (
  RUNS,
  SCALES,
  TRAINED,
  batch_of,
  bits_per_byte,
  decode_pair,
  draft_of,
  prompts,
)
from jaxlm.experiments import Column, Measured, Row, Table
from jaxlm.experiments.verdict import Exact

BATCHES = (1, 4, 8, 16)
PROMPTS, NEW, DRAFTED = 32, 48, 4


def measure(trained, overrides_at) -> Measured:
  """numbers: of a batch size, or bits per byte of a trained row."""
  if not trained.settings:
    return Measured({"bpb": bits_per_byte(trained)}, {}, {})
  import time

  import numpy as np

  from jaxlm.generation.engine.same_length import SameLength
  from jaxlm.generation.engine.speculative import Speculative
  from jaxlm.generation.left_to_right import LeftToRight
  from jaxlm.generation.sampling import GREEDY

  size, group = trained.settings["batch"], trained.settings.get("group")

  def engine_of(model, draft):
    if group:
      return SameLength(model, draft, GREEDY, num_draft=DRAFTED, group=group)
    return Speculative(model, draft, GREEDY, num_draft=DRAFTED)

  counts, seconds, answers = decode_pair(trained, engine_of, PROMPTS, NEW, size)
  from jaxlm.training.config import run_config

  plain, texts = LeftToRight(run_config(trained.config).model, GREEDY), prompts(trained, PROMPTS)
  alone, plain_seconds = [], 0.0
  for turn in (0, 1):
    alone, start = [], time.perf_counter()
    for at in range(0, PROMPTS, size):
      rows, _ = plain.decode_batch(trained.params, batch_of(plain, texts[at : at + size], NEW, at))
      alone += [row.sequence[row.begin :] for row in rows]
      if turn == 0:
        break
    plain_seconds = time.perf_counter() - start
  if group:
    split = {"grouped": equal_share(trained, engine_of, texts[:size])}
  else:
    split = {"draft_share": draft_share(trained, engine_of, texts[:size])}
  same = float(np.mean([np.array_equal(a, b) for a, b in zip(answers, alone)]))
  return Measured(
    {
      "same": same,
      "accepted": float(counts.accepted.sum() / counts.calls.sum()),
      "per_call": counts.block_efficiency,
      "rate": PROMPTS * NEW / seconds,
      "gain": plain_seconds / seconds,
    }
    | split,
    {},
    {},
  )


def draft_share(trained, engine_of, texts, rounds: int = 20) -> float:
  """Share of a round's time that drafting takes: medians of `rounds` rounds by turns."""
  import time

  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.generation.engine.speculative import draft_chain
  from jaxlm.generation.engine.unrolled import opened_pair
  from jaxlm.training.config import run_config

  draft, draft_params = draft_of(trained)
  engine = engine_of(run_config(trained.config).model, draft)
  params = {"target": trained.params, "draft": draft_params}
  engine, params = opened_pair(engine, params)
  batch = batch_of(engine, texts, NEW, 0)
  carries = engine.dispatches(params, batch, rounds=2)
  next(carries)
  carry = next(carries)
  parts = {
    "draft": jax.jit(lambda p, c, k: draft_chain(engine, p["draft"], c, k)),
    "round": jax.jit(lambda p, c, k: engine.round(p, c, k, jnp.asarray(batch.room_B))),
  }
  seconds = {name: [] for name in parts}
  for turn in range(rounds + 1):  # the first compiles
    for name, run in parts.items():
      start = time.perf_counter()
      jax.block_until_ready(run(params, carry, batch.keys_B))
      seconds[name] += [time.perf_counter() - start] if turn else []
  return float(np.median(seconds["draft"]) / np.median(seconds["round"]))


def equal_share(trained, engine_of, texts) -> float:
  """Share of the rounds of one pool whose rows have equal lengths."""
  import numpy as np

  from jaxlm.training.config import run_config

  draft, draft_params = draft_of(trained)
  engine = engine_of(run_config(trained.config).model, draft)
  params = {"target": trained.params, "draft": draft_params}
  _, *rounds = engine.rounds(params, batch_of(engine, texts, NEW, 0))
  return float(np.mean([same for _, same in rounds]))


SAME, PER_CALL = "answers equal to the target's alone", "tokens per target call"

TABLE = Table(
  name="decoding-batchspec",
  title="Speculative decoding of ragged batches, greedy",
  rows=[
    *TRAINED,
    *(
      Row(f"batch{n}", evaluate_from="target", label=f"batch of {n}", settings={"batch": n})
      for n in BATCHES
    ),
    Row(
      "exspec",
      evaluate_from="target",
      label="groups of 8 out of 16",
      settings={"batch": 16, "group": 8},
    ),
  ],
  columns=[
    Column("bits per byte", "bpb"),
    Column(SAME, "same", 3),
    Column("accepted per round", "accepted"),
    Column(PER_CALL, "per_call"),
    Column("tokens/s", "rate", 0),
    Column("plain / speculative time", "gain"),
    Column("draft's share of the time", "draft_share"),
    Column("rounds of equal lengths", "grouped"),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "every answer is the target's own, at every batch size": lambda t: Exact(
      all(t[row, SAME] == 1 for row in (*(f"batch{n}" for n in BATCHES), "exspec"))
    ),
    "a call of the target gives two tokens or more at every batch size": lambda t: (
      min(t[f"batch{n}", PER_CALL] for n in BATCHES) - 2
    ),
  },
  source="arXiv 2510.22876; its numbers are of 7 B models on GPUs and are not compared",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
