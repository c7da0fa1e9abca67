"""Scores of a generated answer against several right ones, as SQuAD and TyDiQA have them."""

import collections
import re


def normalise_answer(text: str) -> list[str]:
  """Words of an answer, lower case, without punctuation and articles (SQuAD's rule)."""
  text = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
  return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_scores(found: str, answers: list[str]) -> tuple[float, float]:
  """(exact match, F1 of words), the best over the gold answers."""

  def f1(a, b):
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else float(a == b)

  words = normalise_answer(found)
  return (
    max(float(words == normalise_answer(a)) for a in answers),
    max(f1(words, normalise_answer(a)) for a in answers),
  )
