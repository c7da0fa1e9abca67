"""Substitution ciphers: every symbol stands for another, the same throughout a text.

A cipher is an int permutation: cipher[plain symbol] = cipher symbol (docs/specs/lexinvariant.md,
section 7).
"""

import numpy as np


def full_cipher(vocab_size: int, rng: np.random.Generator) -> np.ndarray:
  """A uniform permutation of all symbols."""
  return rng.permutation(vocab_size).astype(np.int32)


def partial_cipher(alphabet: str, rng: np.random.Generator, fixed: str | None = None) -> np.ndarray:
  """A uniform permutation of an alphabet's characters that leaves `fixed` alone; default: all that
  are no letters.
  """
  moves = np.array([c.isalpha() if fixed is None else c not in fixed for c in alphabet])
  cipher = np.arange(len(alphabet), dtype=np.int32)
  cipher[moves] = rng.permutation(cipher[moves])
  return cipher


def draw_ciphers(
  characters: list[str], vocab_size: int, count: int, rng: np.random.Generator, *, partial: bool
) -> np.ndarray:
  """int32 (count, vocab_size): ids of `characters` move, all of them or (partial) the letters;
  other ids stay.
  """
  n = len(characters)

  def draw():
    return partial_cipher("".join(characters), rng) if partial else full_cipher(n, rng)

  return np.stack(
    [np.concatenate([draw(), np.arange(n, vocab_size, dtype=np.int32)]) for _ in range(count)]
  )


def encipher(tokens: np.ndarray, cipher: np.ndarray) -> np.ndarray:
  """Symbols under a cipher (V,), or under one per row (B, V)."""
  return np.take_along_axis(cipher, tokens, axis=-1)


def inverse(cipher: np.ndarray) -> np.ndarray:
  """The permutation that deciphers."""
  return np.argsort(cipher, axis=-1).astype(np.int32)


def move_rows(table: np.ndarray, cipher: np.ndarray) -> np.ndarray:
  """The table (.., V, D) that gives a ciphered text the vectors of the plain one: row cipher[v] is
  row v.
  """
  return np.take_along_axis(table, inverse(cipher)[..., None], axis=-2)
