"""Filling gaps in texts: by insertion into open slots, or by unmasking the places of what was
removed.

Axes: B batch, T position. docs/specs/ilm.md, section 5.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data.infilling import Gapped, insertion_prompt, masked_prompt
from jaxlm.generation import masked_diffusion
from jaxlm.generation.answers import Answering


def infill(
  config, params, form: str, ids, examples: Sequence[Gapped], answering: Answering
) -> list[np.ndarray]:
  """The filled texts, int32 ids without special tokens.

  Insertion does not know the gaps' lengths, masked diffusion does.
  """
  if form == "insertion":
    prompts, closed = zip(*(insertion_prompt(e, ids) for e in examples))
    found = answering.answer(config, params, form, ids, prompts, closed=closed).sequences
  elif form == "masked_diffusion":
    found = _unmask(config, params, ids, [masked_prompt(e, ids) for e in examples], answering)
  else:
    raise ConfigError(f"form {form!r} does not fill gaps; insertion and masked_diffusion do")
  special = [ids.cls, ids.bos, ids.eos, ids.pad, ids.mask]
  return [np.asarray(row[~np.isin(row, special)], np.int32) for row in found]


def _unmask(config, params, ids, prompts, answering: Answering) -> list[np.ndarray]:
  out, n, T = [], answering.batch_size, answering.max_len
  for start in range(0, len(prompts), n):
    rows = prompts[start : start + n]
    longest = max(map(len, rows))
    if longest > T:
      raise ConfigError(f"a text of {longest} places exceeds max_len = {T}; raise it")
    tokens_BT = np.full((n, T), ids.pad, np.int32)
    inside_BT = np.zeros((n, T), bool)
    for b, prompt in enumerate(rows):
      tokens_BT[b, : len(prompt)], inside_BT[b, : len(prompt)] = prompt, True
    inside_BT[len(rows) :, 0] = True  # rows that fill the batch up look at something
    passes = answering.passes or max(int((p == ids.mask).sum()) for p in rows)
    key = jax.random.fold_in(jax.random.key(answering.seed), start)
    found_BT = masked_diffusion.sample(
      params,
      jnp.asarray(tokens_BT),
      jnp.asarray(inside_BT),
      key,
      config=config,
      mask=ids.mask,
      max_steps=passes,
      order=answering.order,
    )
    out += [row[: len(prompt)] for row, prompt in zip(np.asarray(found_BT), rows)]
  return out
