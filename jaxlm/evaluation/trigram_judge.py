"""An outside judge: the trigram model of US English that comes with `pocketsphinx` (extra `bench`),
words for tokens.

It has never seen our corpora or our models. Words are lower case without punctuation; a word that
its dictionary lacks has no probability and begins a new context, and `Quality.unknown` says how
many those were.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.evaluation.judge import Scored

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)*")
UNKNOWN_BELOW = -10_000  # nats: what the library says for "zero"


class TrigramJudge:
  """log p(word | the two words in front), in nats; <s> begins a text."""

  def __init__(self, path: str | None = None):
    try:
      import pocketsphinx
    except ImportError:
      raise ConfigError(
        "the trigram judge needs the package `pocketsphinx`: pip install 'jaxlm[bench]'"
      ) from None
    self._log = pocketsphinx.LogMath()
    self._model = pocketsphinx.NGramModel(
      pocketsphinx.Config(lm=None),
      self._log,
      path or pocketsphinx.get_model_path("en-us/en-us.lm.bin"),
    )
    self._ids: dict[str, int] = {}

  def log_prob(self, words: Sequence[str]) -> float:
    """log p(last word | the others); nan if the model does not know it."""
    value = self._log.log_to_ln(
      self._model.prob(list(reversed(words)))
    )  # it reads the nearest word first
    return value if value > UNKNOWN_BELOW else float("nan")

  def __call__(self, texts: Sequence[str]) -> list[Scored]:
    out = []
    for text in texts:
      words, context, found = WORD.findall(text.lower().replace("’", "'")), ["<s>"], []
      for word in words:
        found.append(self.log_prob([*context, word]))
        context = [] if np.isnan(found[-1]) else [*context, word][-2:]
      ids = [self._ids.setdefault(word, len(self._ids)) for word in words]
      out.append(Scored(np.asarray(ids, np.int64), np.asarray(found, np.float64)))
    return out
