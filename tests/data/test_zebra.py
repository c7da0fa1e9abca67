"""Zebra puzzles have one solution, by enumeration; nothing of them is lost on the way to a row and
back.
"""

import itertools
import json

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.data.tasks import zebra
from jaxlm.data.tasks.zebra_puzzles import Clue, generate, holds, places_of, solutions, solve


def every_grid(num_houses, num_attributes):
  return [
    np.asarray(g)
    for g in itertools.product(itertools.permutations(range(num_houses)), repeat=num_attributes)
  ]


def satisfied(clues, values_AH):
  places = places_of(values_AH)
  return all(holds(clue, places, values_AH.shape[1]) for clue in clues)


def test_a_generated_puzzle_has_its_solution_alone_and_needs_every_clue():
  grids = every_grid(3, 3)
  for seed in range(15):
    puzzle = generate(np.random.default_rng(seed), 3, 3)
    [only] = [g for g in grids if satisfied(puzzle.clues, g)]
    np.testing.assert_array_equal(only, puzzle.values_AH)
    assert {cell: house for cell, house in solve(puzzle.clues, 3, 3)} == places_of(puzzle.values_AH)
    for clue in puzzle.clues:
      assert len([g for g in grids if satisfied([c for c in puzzle.clues if c is not clue], g)]) > 1


def test_the_solver_counts_what_enumeration_counts():
  grids = every_grid(4, 2)
  for seed in range(15):
    clues = generate(np.random.default_rng(seed), 4, 2).clues[::2]
    assert len(list(solutions(clues, 4, 2))) == sum(satisfied(clues, g) for g in grids)


def test_a_contradiction_has_no_solution_and_a_free_cell_more_than_one():
  first, last = Clue("=", ((0, 0), (-1, 0))), Clue("=", ((0, 0), (-1, 2)))
  assert next(solutions([first, last], 3, 1), None) is None
  assert solve([first], 3, 1) is None and len(list(solutions([first], 3, 1))) == 2


@pytest.mark.parametrize("order", ["sorted", "solver"])
def test_an_encoded_puzzle_decodes_to_itself(order):
  puzzle = generate(np.random.default_rng(3), 4, 3)
  question, answer = zebra.encode(puzzle, order)
  assert zebra.decode_clues(zebra.WORDS[i] for i in question) == list(puzzle.clues)
  facts = {tuple(int(zebra.WORDS[i]) for i in answer[k : k + 3]) for k in range(0, len(answer), 3)}
  assert facts == {(h, a, int(puzzle.values_AH[a, h])) for a in range(3) for h in range(4)}


@pytest.mark.parametrize(
  "form", ["insertion", "insertion_transformer", "causal", "masked_diffusion"]
)
def test_a_batch_is_a_function_of_its_seed(form):
  data = zebra.ZebraData(batch_size=2, form=form, houses=2, attributes=2, rows=4, seq_len=80)
  a, b = (next(iter(data.build("train", seed=0))) for _ in range(2))
  assert all(np.array_equal(a[k], b[k]) for k in a) and a["tokens"].max() < data.vocab_size
  other = next(iter(data.build("test", seed=0)))
  assert not np.array_equal(a["tokens"], other["tokens"])


def test_the_original_data_are_read_and_a_foreign_word_is_refused(tmp_path):
  rows = [{"clues": "= LHS c 0 1 RHS n 0 CLUE_END", "answer": "0 0 1 1 0 0"}]
  (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
  data = zebra.ZebraData(batch_size=1, path=str(tmp_path / "{split}.jsonl"), seq_len=40)
  [(question, answer)] = data.random_access("test", 0)
  assert [zebra.WORDS[i] for i in question + answer] == (
    rows[0]["clues"] + " " + rows[0]["answer"]
  ).split()
  (tmp_path / "test.jsonl").write_text(json.dumps({"clues": "LHS zebra", "answer": ""}))
  with pytest.raises(DataError, match="'zebra' is no word"):
    data.random_access("test", 0)
  (tmp_path / "test.jsonl").write_text(json.dumps({"clue": "", "answer": ""}))
  with pytest.raises(DataError, match="no column 'clues'"):
    data.random_access("test", 0)


def test_more_houses_than_digits_are_refused():
  with pytest.raises(ConfigError, match="digits 0 to 5"):
    zebra.ZebraData(batch_size=1, houses=7)
