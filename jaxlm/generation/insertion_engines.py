"""The engines of insertion models: the insertion language model and the Insertion Transformer.

docs/specs/ilm.md, sections 4 to 6. Both run the sampler of `insertion.py`; they differ in what ends
a row. Its buffer is as long as the longest row, and the batch shrinks when half of it has stopped.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import Batch, Engine, Options, Prompt, Snapshot, refuse_options
from jaxlm.generation.framed_rows import framed_row
from jaxlm.generation.insertion import Filter, Inserter, InsertionSampling
from jaxlm.generation.processors import refuse_order
from jaxlm.generation.sampling import Sampling
from jaxlm.ranges import Inside


class _Inserting(Engine):
  """What both share: a prompt begins with CLS, and its `closed` says where nothing is inserted."""

  scores: ClassVar[tuple[str, ...]] = ("inserted_tokens",)

  def __post_init__(self):
    super().__post_init__()
    self.ids.require(("cls", "bos", "eos", "pad", "mask"), f"{type(self).__name__}.ids")

  @classmethod
  def from_data(cls, data):
    return {"ids": data.special_tokens}

  def inserter(self, max_len: int) -> Inserter:
    """The sampler for rows of at most max_len tokens."""
    raise NotImplementedError(f"{type(self).__name__} names no sampler")

  def decode_batch(self, params, batch: Batch):
    inserter, rows = self.begin(batch)
    rows = inserter.generate(params, rows, batch.keys_B)
    tokens_BL, length_B = np.asarray(rows.tokens_BL), np.asarray(rows.length_B)
    done = [
      framed_row(tokens[:length], prompt, self.ids, begin=answer_begin(prompt))
      for tokens, length, prompt in zip(tokens_BL, length_B, batch.prompts)
    ]
    return done, int(rows.steps)

  def watch(self, params, prompt, max_new_tokens: int, *, seed: int = 0):
    batch = self.single(prompt, max_new_tokens, seed)
    inserter, begun = self.begin(batch)
    tokens, steps, seen = np.asarray(batch.prompts[0].tokens, np.int32), 0, None
    rows = begun
    for rows, step in inserter.stream(params, begun, batch.keys_B):
      steps = int(rows.steps)
      if bool(step.inserted_B[0]):
        tokens = np.asarray(rows.tokens_BL)[0, : int(rows.length_B[0])]
        compiled, seen = rows.tokens_BL.shape != seen, rows.tokens_BL.shape
        yield Snapshot(tokens, int(step.slot_B[0]) + 1, steps, compiled=compiled)
    # The pass that says stop inserts nothing, and `stream` does not yield it.
    stopped = bool(rows.alive_B[0]) and steps < inserter.max_steps
    yield Snapshot(tokens, None, steps + stopped, final=True)

  def begin(self, batch: Batch):
    """(the sampler, the rows before the first insertion)."""
    inserter = self.inserter(batch.longest)
    most = [len(p) + int(n) for p, n in zip(batch.prompts, batch.room_B)]
    closed = [closed_slots(p) for p in batch.prompts]
    return inserter, inserter.start([list(p.tokens) for p in batch.prompts], closed, most=most)


@dataclasses.dataclass(frozen=True)
@checked
class InsertionEngine(_Inserting):
  """One token per row and forward pass, anywhere, until the stop head's probability reaches
  stop_threshold.

  ids: SpecialTokens of the data; cls, bos, eos, pad and mask are never inserted. insertion: how slot
  and token are chosen.
  """

  form: ClassVar[str] = "insertion"

  model: object
  ids: object
  insertion: InsertionSampling = InsertionSampling(Filter(top_k=1), Filter(top_k=1))
  stop_threshold: Inside = 0.9

  @classmethod
  def misfit(cls, model):
    return super().misfit(model) or (None if model.stop_head else "has no stop head")

  @classmethod
  def from_options(cls, options):
    stop = options.stop_threshold
    if stop is not None and not 0 < stop < 1:
      raise ConfigError(f"--stop_threshold={stop}: wanted a probability inside (0, 1)")
    chosen = {} if stop is None else {"stop_threshold": stop}
    return {"insertion": insertion_sampling(options)} | chosen

  def inserter(self, max_len: int) -> Inserter:
    ids = self.ids
    return Inserter(
      self.model,
      suppressed=(ids.mask, ids.eos, ids.pad, ids.cls, ids.bos),
      pad=ids.pad,
      max_len=max_len,
      max_steps=max_len,
      sampling=self.insertion,
      stop_threshold=self.stop_threshold,
    )


@dataclasses.dataclass(frozen=True)
class InsertionTransformerEngine(_Inserting):
  """One token per row and forward pass; a row ends when the end token is the best of all its open
  slots.

  ids, insertion: as of InsertionEngine, but the end token may be chosen. A stop head is not read.
  """

  form: ClassVar[str] = "insertion_transformer"

  model: object
  ids: object
  insertion: InsertionSampling = InsertionSampling(Filter(top_k=1), Filter(top_k=1))

  @classmethod
  def from_options(cls, options):
    refuse_options(cls, options, ("stop_threshold",))
    return {"insertion": insertion_sampling(options)}

  def inserter(self, max_len: int) -> Inserter:
    ids = self.ids
    return Inserter(
      self.model,
      suppressed=(ids.mask, ids.pad, ids.cls, ids.bos),
      pad=ids.pad,
      max_len=max_len,
      max_steps=max_len,
      sampling=self.insertion,
      stop_threshold=None,
      eos=ids.eos,
    )


def closed_slots(prompt: Prompt) -> list[bool]:
  """The prompt's own, or every slot of it but the last token's (BOS)."""
  default = [True] * (len(prompt) - 1) + [False]
  return default if prompt.closed is None else [bool(c) for c in prompt.closed]


def answer_begin(prompt: Prompt) -> int:
  """Where the answer begins: 0 with an open slot inside the prompt, as new tokens stand there."""
  return len(prompt) if all(closed_slots(prompt)[:-1]) else 0


def insertion_sampling(options: Options) -> InsertionSampling:
  """The slot is chosen first: slot_top_k and slot_top_p are of the slots, the others of the tokens
  of that slot. temperature 0: the best slot, and its best token.
  """
  refuse_order(options.processors or (), "insertion")
  if options.temperature == 0:
    return InsertionSampling(Filter(top_k=1), Filter(top_k=1))
  slot = Sampling(top_k=options.slot_top_k, top_p=options.slot_top_p)
  return InsertionSampling(options.sampling(default_temperature=1.0), slot)
