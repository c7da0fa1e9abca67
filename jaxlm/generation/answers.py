"""Answers to prompts from any of the forms: by insertion, from left to right, or by unmasking.

Axes: B batch, T position. docs/specs/ilm.md, sections 4 to 6. Lists of sequences in, lists of
sequences out; shapes stay static because every batch is filled up to `batch_size` rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation import masked_diffusion
from jaxlm.generation.autoregressive import Generator
from jaxlm.generation.insertion import Filter, Inserter, InsertionSampling
from jaxlm.generation.sampling import Sampling
from jaxlm.ranges import Count, Inside, Seed

FORMS = ("insertion", "insertion_transformer", "causal", "masked_diffusion")


class Answers(NamedTuple):
  """sequences: prompt and answer of each row, int32, without pad, mask and EOS. passes: of the
  network, all batches.

  row_passes: the sum over rows of the passes that their batch took. new_tokens: put there by the
  model, all rows.
  """

  sequences: list[np.ndarray]
  passes: int
  row_passes: int
  new_tokens: int

  @property
  def tokens_per_pass(self) -> float:
    """New tokens of a row per forward pass: 1 at most for insertion and from left to right."""
    return self.new_tokens / max(self.row_passes, 1)


@dataclasses.dataclass(frozen=True)
@checked
class Answering:
  """How answers are made; every field is used by the forms that have it.

  max_len: tokens of a whole sequence. greedy: the most probable (slot and) token; else `insertion`
  and `causal` say how
  to draw. stop_threshold: of a stop head; the Insertion Transformer stops by its best tokens.
  passes: of masked diffusion; None: as many as the longest answer has tokens. order: of masked
  diffusion.
  """

  max_len: Count
  batch_size: Count = 100
  insertion: InsertionSampling = InsertionSampling(Filter(top_k=1), Filter(top_k=1))
  causal: Sampling = Sampling(temperature=0)
  stop_threshold: Inside = 0.9
  passes: Count | None = None
  order: Literal["ancestral", "confidence"] = "ancestral"
  seed: Seed = 0

  def answer(
    self,
    config,
    params,
    form: str,
    ids,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    closed: Sequence[Sequence[bool]] | None = None,
  ) -> Answers:
    """config, params: of the model. ids: has cls, bos, eos, pad and mask. prompts: as the form
    begins, BOS last.

    lengths: tokens of each answer, which masked diffusion must be told (the release tells it the
    true ones).
    closed: slots of each prompt where nothing may be inserted; default all but its last token's.
    """
    if form not in FORMS:
      raise ConfigError(f"form {form!r}; known: {', '.join(FORMS)}")
    if form == "masked_diffusion" and lengths is None:
      raise ConfigError(
        "masked diffusion fills a given number of places: say how long each answer is (lengths)"
      )
    out, n = Answers([], 0, 0, 0), self.batch_size
    for start in range(0, len(prompts), n):
      rows = [list(map(int, p)) for p in prompts[start : start + n]]
      asked = None if lengths is None else list(lengths[start : start + n])

      def fill(x):
        return x and x + x[-1:] * (n - len(x))

      shut = (
        [closed_prompt(p) for p in rows]
        if closed is None
        else [list(c) for c in closed[start : start + n]]
      )
      found, passes = self._batch(
        config,
        params,
        form,
        ids,
        fill(rows),
        fill(asked),
        fill(shut),
        jax.random.fold_in(jax.random.key(self.seed), start),
      )
      # With open slots inside the prompt there is no place where the answer begins, and no EOS.
      begins = [0 if form == "insertion" and closed is not None else len(p) for p in rows]
      found = [_clean(row, at, ids) for row, at in zip(found, begins)]
      out = Answers(
        out.sequences + found,
        out.passes + passes,
        out.row_passes + passes * len(rows),
        out.new_tokens + sum(len(f) - len(p) for f, p in zip(found, rows)),
      )
    return out

  def _batch(self, config, params, form, ids, prompts, lengths, closed, key):
    """(sequences with whatever stands behind them, forward passes)."""
    if form == "causal":
      shortest, longest = min(map(len, prompts)), max(map(len, prompts))
      # All rows of a batch go on equally far, and a table of learned positions ends where the
      # longest one meets its end.
      most = min(self.max_len - shortest, (config.max_len or self.max_len + longest) - longest)
      new = Generator(config, params, self.causal, stop_tokens=(ids.eos,)).generate(
        prompts, most, seed=int(jax.random.bits(key) >> 1)
      )
      # The pass that draws EOS counts; a row at its length limit never gets there.
      passes = max(min(len(t) + 1, self.max_len - len(p)) for p, t in zip(prompts, new))
      return [np.asarray([*p, *t], np.int32)[: self.max_len] for p, t in zip(prompts, new)], passes
    if form == "masked_diffusion":
      return self._unmask(config, params, ids, prompts, lengths, key)
    inserter = self.inserter(config, form, ids)
    rows = inserter.generate(params, inserter.start(prompts, closed), key)
    tokens_BL, length_B = np.asarray(rows.tokens_BL), np.asarray(rows.length_B)
    return [row[:n] for row, n in zip(tokens_BL, length_B)], int(rows.steps)

  def inserter(self, config, form: str, ids) -> Inserter:
    """The sampler of an insertion model, or of an Insertion Transformer, which may choose EOS."""
    it = form == "insertion_transformer"
    return Inserter(
      config,
      suppressed=(ids.mask, *(() if it else (ids.eos,)), ids.pad, ids.cls, ids.bos),
      pad=ids.pad,
      max_len=self.max_len,
      max_steps=self.max_len,
      sampling=self.insertion,
      stop_threshold=None if it else self.stop_threshold,
      eos=ids.eos if it else None,
    )

  def _unmask(self, config, params, ids, prompts, lengths, key):
    tokens_BT = np.full((len(prompts), self.max_len), ids.pad, np.int32)
    inside_BT = np.zeros(tokens_BT.shape, bool)
    for b, (prompt, length) in enumerate(zip(prompts, lengths)):
      if len(prompt) + length > self.max_len:
        raise ConfigError(
          f"prompt {b}: {len(prompt)} tokens and {length} to be filled in exceed max_len = "
          f"{self.max_len}; raise it"
        )
      tokens_BT[b, : len(prompt)] = prompt
      tokens_BT[b, len(prompt) : len(prompt) + length] = ids.mask
      inside_BT[b, : len(prompt) + length] = True
    passes = max(lengths) if self.passes is None else self.passes
    found_BT = masked_diffusion.sample(
      params,
      jnp.asarray(tokens_BT),
      jnp.asarray(inside_BT),
      key,
      config=config,
      mask=ids.mask,
      max_steps=passes,
      order=self.order,
    )
    return [row[inside] for row, inside in zip(np.asarray(found_BT), inside_BT)], passes


def closed_prompt(prompt: Sequence[int]) -> list[bool]:
  """Every slot of a prompt but the last token's (BOS) stays closed."""
  return [True] * (len(prompt) - 1) + [False]


def _clean(row, prompt_length: int, ids) -> np.ndarray:
  """The prompt as it is, the answer up to EOS without pad and mask."""
  answer = np.asarray(row[prompt_length:], np.int32)
  ends = np.flatnonzero(answer == ids.eos)
  answer = answer[: ends[0]] if len(ends) else answer
  return np.concatenate(
    [np.asarray(row[:prompt_length], np.int32), answer[~np.isin(answer, [ids.pad, ids.mask])]]
  )
