"""Constrained answers: unbiased weights, the exact posterior in the limit, and clear refusals."""

import json

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation.engine import constraints
from jaxlm.generation.engine.constrained import Constrained, adaptive_rejection, systematic
from jaxlm.generation.engine.constraints import DFA, JSON, Brackets, Callback, Grammar, TokenMachine
from tests.generation.engine import toys

P_V = np.array([0.35, 0.05, 0.2, 0.1, 0.25, 0.05])
ALLOWED = {1, 2, 5}
TOKENS = (b"a", b"b", b"c", b"")  # the last is the stop


def accepts(constraint, text: bytes) -> bool:
  state = constraint.read(constraint.start(), text)
  return state is not None and constraint.complete(state)


def test_the_weights_of_a_step_are_unbiased():
  """Mean of weight 1{x} against p(x) 1{allowed}: five standard errors, seed fixed."""
  rng, n = np.random.default_rng(0), 30_000
  total, squares, calls = np.zeros(6), np.zeros(6), 0

  def allowed(token):
    nonlocal calls
    calls += 1
    return token in ALLOWED

  for _ in range(n):
    token, weight = adaptive_rejection(P_V, allowed, rng)
    total[token] += weight
    squares[token] += weight**2
  want = np.where(np.isin(np.arange(6), list(ALLOWED)), P_V, 0)
  error = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 1e-12) / n)
  assert np.all(np.abs(total / n - want) < 5 * error + 1e-12)
  assert calls / n < 1 / want.sum() + 2  # a few, whatever the vocabulary


def test_nothing_allowed_has_weight_0():
  rng = np.random.default_rng(0)
  assert adaptive_rejection(P_V, lambda token: False, rng) == (None, 0.0)
  token, weight = adaptive_rejection(np.array([0.0, 1.0]), lambda token: True, rng)
  assert (token, weight) == (1, 1.0)


def test_systematic_resampling_is_proportional():
  rng = np.random.default_rng(0)
  counts = np.zeros(3)
  for _ in range(4000):
    counts += np.bincount(systematic(np.array([0.5, 0.3, 0.2]), rng), minlength=3)
  np.testing.assert_allclose(counts / counts.sum(), [0.5, 0.3, 0.2], atol=0.01)


@pytest.fixture(scope="module")
def model():
  return toys.model(vocab_size=4, d_model=8, scale=6)


#: Texts of three letters: "a" leads to a rare end, so that masks, which do not look ahead, are biased.
DEAD_END = DFA(
  {0: {97: 1, 98: 2}, 1: {97: 1, 98: 1, 99: 3}, 2: {97: 3, 98: 3, 99: 3}, 3: {}},
  frozenset({3}),
)


def posterior(constraint, config, params, prompt, length=4):
  """{answer: probability} of allowed answers of at most `length` - 1 letters and a stop."""
  out = {}
  for n in range(1, length):
    for row, p in toys.distribution(config, params, prompt, n + 1).items():
      text = b"".join(TOKENS[t] for t in row[:-1])
      if row[-1] == 3 and 3 not in row[:-1] and accepts(constraint, text):
        out[row[:-1]] = out.get(row[:-1], 0) + p
  total = sum(out.values())
  return {row: p / total for row, p in out.items()}, total


def variation(found, wanted) -> float:
  keys = set(found) | set(wanted)
  return 0.5 * sum(abs(found.get(k, 0) - wanted.get(k, 0)) for k in keys)


def shares(one) -> dict:
  weights = np.exp(one.log_weights - one.log_weights.max())
  out = {}
  for answer, w in zip(one.answers, weights / weights.sum()):
    out[tuple(answer.tolist())] = out.get(tuple(answer.tolist()), 0) + w
  return out


def test_particles_find_the_exact_posterior_and_masks_stay_biased(model):
  """Two letters, the second after an `a` being the least likely one: masks take no notice of that.

  Total variation with 2,000 particles below 0.06, where multinomial noise alone is near 0.03.
  """
  config, params = model
  after_a = np.asarray(toys.whole(params, np.asarray([[0, 1, 0]], np.int32), config))[0, -1, :3]
  rare = 97 + int(np.argmin(after_a))
  every = {97: 3, 98: 3, 99: 3}
  trap = DFA({0: {97: 1, 98: 2, 99: 2}, 1: {rare: 3}, 2: every, 3: {}}, frozenset({3}))
  wanted, z = posterior(trap, config, params, [0, 1])
  engine = Constrained(config, trap, TOKENS, stops=(3,), particles=2000)
  [one], _ = engine.decode_weighted(params, engine.single([0, 1], 4, seed=1))
  assert variation(shares(one), wanted) < 0.06
  assert np.exp(one.log_z) == pytest.approx(z, rel=0.15)
  masks = Constrained(config, trap, TOKENS, stops=(3,), method="mask_smc", particles=2000, tau=1e-9)
  [weighted], _ = masks.decode_weighted(params, masks.single([0, 1], 4, seed=1))
  assert variation(shares(weighted), wanted) < 0.06
  flat = np.where(np.isfinite(weighted.log_weights), 0.0, -np.inf)  # what masks alone draw
  assert variation(shares(weighted._replace(log_weights=flat)), wanted) > 0.1


@pytest.mark.slow
def test_the_answer_of_a_row_does_not_depend_on_the_batch(model):
  config, params = model
  engine = Constrained(config, DEAD_END, TOKENS, stops=(3,), particles=8, deterministic=True)
  together = engine.generate(params, [[0, 1], [1, 2]], 6, seed=4).answers
  alone = engine.generate(params, [[0, 1]], 6, seed=4).answers
  assert together[0].tolist() == alone[0].tolist()
  for answer in together:
    assert accepts(DEAD_END, b"".join(TOKENS[t] for t in answer))


def test_constraints_that_no_text_satisfies_are_refused_before_decoding(model):
  nothing = DFA({0: {97: 1}, 1: {97: 0}}, frozenset({2}))
  with pytest.raises(ConfigError, match="no text satisfies"):
    Constrained(model[0], nothing, TOKENS)
  with pytest.raises(ConfigError, match="needs a constraint"):
    Constrained(model[0])
  with pytest.raises(ConfigError, match="bytes of 2 ids for a vocabulary of 4"):
    Constrained(model[0], DEAD_END, TOKENS[:2])


def test_a_constraint_that_no_particle_meets_is_said_after_the_limit(model):
  config, params = model
  never = Callback(lambda text: True, lambda text: False)
  engine = Constrained(config, never, TOKENS, stops=(3,), particles=2)
  with pytest.raises(ConfigError, match="none of 2 particles satisfies"):
    engine.generate(params, [[0]], 3)


@pytest.mark.parametrize(
  ("constraint", "good", "bad"),
  [
    (Brackets(), [b"()", b"([])[]"], [b"", b"(", b"(]", b")", b"(a)"]),
    (DEAD_END, [b"ac", b"aabc", b"ba"], [b"c", b"aa", b"bac"]),
    (Callback(lambda t: b"x" not in t, lambda t: len(t) == 2), [b"ab"], [b"a", b"ax", b"abc"]),
  ],
)
def test_what_a_constraint_accepts(constraint, good, bad):
  assert [accepts(constraint, text) for text in good] == [True] * len(good)
  assert [accepts(constraint, text) for text in bad] == [False] * len(bad)


def test_the_json_subset_accepts_json_and_nothing_else():
  """Random edits of JSON texts: what the machine accepts is what Python's parser reads."""
  rng = np.random.default_rng(0)
  machine = JSON(only_objects=False)
  texts = [b'{"a":[1,-20,{}],"b":"x y"}', b"[]", b"[true,false,null]", b"0", b'"s"', b"-7"]
  alphabet = b'{}[]",:019-truefalsn '
  accepted = 0
  for _ in range(3000):
    text = bytearray(texts[rng.integers(len(texts))])
    for _ in range(rng.integers(3)):
      at = rng.integers(len(text) + 1)
      if rng.random() < 0.5 and at < len(text):
        del text[at]
      else:
        text.insert(at, alphabet[rng.integers(len(alphabet))])
    text = bytes(text)
    if accepts(machine, text):
      json.loads(text)
      accepted += 1
  assert accepted > 300
  assert all(accepts(machine, text) for text in texts) and not accepts(machine, b"01")
  assert not accepts(JSON(), b"[]")


def test_a_token_of_several_bytes_is_read_whole():
  machine = TokenMachine(Brackets(), (b"(", b")", b"()", b"x", b""), stops=(4,))
  inside = machine.after(machine.start(), 0)
  assert machine.after(inside, 2) == inside and machine.after(inside, 3) is None
  assert machine.after(inside, 4) is None
  assert machine.after(machine.after(inside, 1), 4) == constraints.DONE


def test_regular_expressions_and_schemas_by_the_kept_library():
  pytest.importorskip("llguidance")
  number = Grammar.regex("[0-9]{1,3}(,[0-9]{3})*")
  assert accepts(number, b"12") and accepts(number, b"1,234") and not accepts(number, b"1,23")
  assert accepts(Grammar.regex("caf\u00e9"), "caf\u00e9".encode()) and not accepts(number, b"")
  schema = Grammar.json_schema(
    {
      "type": "object",
      "properties": {"n": {"type": "integer"}},
      "required": ["n"],
      "additionalProperties": False,
    }
  )
  assert accepts(schema, b'{"n":3}') and not accepts(schema, b'{"m":3}')
  with pytest.raises(ConfigError, match="the constraint"):
    Grammar.regex("a(b")
