r"""Unconditional token forcing: finding text that was hidden in a model by fine-tuning.

Axes: V vocab, N candidates, T tokens.

Source: Hoscilowicz et al., "Unconditional Token Forcing: Extracting Text Hidden Within LLM", arXiv
2406.02481, and the authors' notebooks. Phase 1: every token v is forced behind the beginning of a text;
of three greedy tokens with probabilities p_1, p_2, p_3

  score(v) = (1 + p_1 + p_2 + p_3) / 4,   kept if above 0.95 (the forced token counts 1).

Phase 2: 50 greedy tokens from each kept v. Ours: candidates are ordered by the share of those tokens
that one n-gram, n >= 4, covers if it occurs twice at least (the n-gram that covers most), then by score.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

KEPT = 0.95
STEPS = 3


class Candidate(NamedTuple):
  """token: that was forced. score: of phase 1. tokens: greedy continuation. repetition: of it."""

  token: int
  score: float
  tokens: list[int]
  repetition: float


def greedy(logits: Callable, tokens_NT, steps: int):
  """(int32 (N, steps) tokens, their float64 probabilities). Ties go to the lowest id.

  logits(tokens_NT) -> (N, V) of the next token: any function of whole rows.
  """
  tokens_NT, chosen, probabilities = np.asarray(tokens_NT, np.int32), [], []
  for _ in range(steps):
    z_NV = np.asarray(logits(tokens_NT), np.float64)
    p_NV = np.exp(z_NV - z_NV.max(1, keepdims=True))
    p_NV /= p_NV.sum(1, keepdims=True)
    best_N = z_NV.argmax(1)
    chosen.append(best_N)
    probabilities.append(p_NV[np.arange(len(best_N)), best_N])
    tokens_NT = np.concatenate([tokens_NT, best_N[:, None].astype(np.int32)], axis=1)
  return np.stack(chosen, 1).astype(np.int32), np.stack(probabilities, 1)


def score(probabilities) -> float:
  """(1 + the sum of the probabilities) / (1 + their number)."""
  return (1 + float(np.sum(probabilities))) / (1 + len(probabilities))


def scores(logits: Callable, begin: Sequence[int], vocab: Sequence[int], batch_size: int = 512):
  """float64 score of each token of `vocab`, forced behind `begin`."""
  out = []
  for start in range(0, len(vocab), batch_size):
    forced = [[*begin, v] for v in vocab[start : start + batch_size]]
    _, p = greedy(logits, forced, STEPS)
    out += [score(row) for row in p]
  return np.asarray(out)


def repetition(tokens: Sequence[int], least: int = 4) -> float:
  """Share of the tokens that the occurrences of one n-gram, n >= least, cover; 0 if none occurs twice."""
  best, tokens = 0, list(tokens)
  for n in range(least, len(tokens) // 2 + 1):
    places: dict[tuple, list[int]] = {}
    for at in range(len(tokens) - n + 1):
      places.setdefault(tuple(tokens[at : at + n]), []).append(at)
    for found in places.values():
      if len(found) > 1:
        best = max(best, len({i for at in found for i in range(at, at + n)}))
  return best / max(len(tokens), 1)


def extract(
  logits: Callable,
  continue_all: Callable,
  begin: Sequence[int],
  vocab: Sequence[int],
  *,
  kept: float = KEPT,
  batch_size: int = 512,
) -> list[Candidate]:
  """Candidates of phase 2, the most repetitive first.

  continue_all(prompts) -> list of greedy continuations of phase 2, one per prompt.
  """
  score_V = scores(logits, begin, vocab, batch_size)
  chosen = [(v, s) for v, s in zip(vocab, score_V) if s > kept]
  texts = continue_all([[*begin, v] for v, _ in chosen]) if chosen else []
  found = [
    Candidate(int(v), float(s), list(map(int, text)), repetition([v, *text]))
    for (v, s), text in zip(chosen, texts)
  ]
  return sorted(found, key=lambda c: (-c.repetition, -c.score, c.token))


def contains(tokens: Sequence[int], hidden: Sequence[int]) -> bool:
  """Whether the hidden tokens stand in a row in `tokens`."""
  tokens, hidden = list(tokens), list(hidden)
  return any(tokens[i : i + len(hidden)] == hidden for i in range(len(tokens) - len(hidden) + 1))


def rank(logits_V, token: int) -> int:
  """1 + the number of other tokens whose logit is at least the token's (ties count as better)."""
  logits_V = np.asarray(logits_V)
  return int(np.sum(logits_V >= logits_V[token]))
