"""Answers from a list of words: distance to the exact posterior, and calls of the constraint per token.

  python experiments/decoding/awrs.py --scale smoke|small

Source: Lipkin et al., "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection
Sampling", arXiv 2504.05410. The answer is one of the words below, in a byte model's own continuation of a
text; the posterior is exact, for every word can be scored. Masks draw each byte from those that some word
allows, and take no notice of how likely the rest of the word is. The last rows count calls of one step over
made-up vocabularies, of which a constraint allows the same mass P: 1 / P + 1 in expectation at most, whatever their size.
"""

from experiments.decoding.pair import RUNS, SCALES, TRAINED, bits_per_byte, prompts
from jaxlm.experiments import Column, Measured, Row, Table

WORDS = (
  "about after again being could every first found great house little might never other place right "
  "shall since small still their there these thing think those three under where which while white whole "
  "whale world would years young"
).split()
LENGTH = 5
WORDS = [w for w in WORDS if len(w) == LENGTH]
PROMPTS, DRAWS = 4, 100
METHODS = {
  "mask": dict(method="mask"),
  "mask_smc10": dict(method="mask_smc", particles=10),
  "awrs1": dict(method="awrs", particles=1),
  "awrs5": dict(method="awrs", particles=5),
  "awrs10": dict(method="awrs", particles=10),
  "awrs50": dict(method="awrs", particles=50),
}
LABELS = {
  "mask": "masks",
  "mask_smc10": "masks, 10 particles with weights",
  "awrs1": "AWRS, 1 particle",
  "awrs5": "AWRS, 5 particles",
  "awrs10": "AWRS, 10 particles",
  "awrs50": "AWRS, 50 particles",
}


VOCABULARIES, ALLOWED, STEPS = (64, 1024, 16384), 0.37, 2000


def words_dfa(words):
  """The DFA of a list of words."""
  from jaxlm.generation.engine.constraints import DFA

  transitions: dict = {}
  for word in words:
    for i, byte in enumerate(word.encode()):
      transitions.setdefault(word[:i], {})[byte] = word[: i + 1]
  return DFA({s: t for s, t in transitions.items()}, frozenset(words), first="")


def posterior(model, params, prompt):
  """Probabilities of WORDS behind a prompt, normalised; (V,) float64."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  rows = np.asarray([[*prompt, *w.encode()] for w in WORDS], np.int32)
  logits = jax.jit(lambda p, x: model.build().apply({"params": p}, x))(params, jnp.asarray(rows))
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  at = np.arange(len(prompt) - 1, len(prompt) + LENGTH - 1)
  total = np.take_along_axis(log_p[:, at], rows[:, len(prompt) :, None], 2)[..., 0].sum(1)
  p = np.exp(total - total.max())
  return p / p.sum()


def calls_per_step(vocab: int, seed: int) -> dict:
  """calls: of the constraint, mean of STEPS steps over one made-up distribution; bound: of that mean."""
  import numpy as np

  from jaxlm.generation.engine.constrained import adaptive_rejection

  rng = np.random.default_rng([seed, vocab])
  p_V = np.exp(2.0 * rng.normal(size=vocab))
  p_V /= p_V.sum()
  order = rng.permutation(vocab)
  allowed = set(order[: 1 + int(np.argmax(np.cumsum(p_V[order]) >= ALLOWED))].tolist())
  calls = 0

  def ask(token: int) -> bool:
    nonlocal calls
    calls += 1
    return token in allowed

  for _ in range(STEPS):
    adaptive_rejection(p_V, ask, rng)
  return {"calls": calls / STEPS, "bound": 1 / float(p_V[sorted(allowed)].sum()) + 1}


def measure(trained, overrides_at) -> Measured:
  """tv: total variation between the answers of DRAWS runs, pooled by their weights, and the posterior,
  mean over prompts. calls: of the constraint per drawn token.
  """
  if "vocab" in trained.config:
    return Measured(calls_per_step(trained.config["vocab"], trained.config["seed"]), {}, {})
  if not trained.settings:
    return Measured({"bpb": bits_per_byte(trained)}, {}, {})
  import numpy as np

  from experiments.decoding.pair import batch_of
  from jaxlm.generation.engine.constrained import Constrained
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  tokenizer = cfg.data.load_tokenizer()
  tokens = tuple(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
  fields = METHODS[trained.settings["method"]]
  engine = Constrained(cfg.model, words_dfa(WORDS), tokens, **fields)
  distances, calls, drawn, dead = [], 0, 0, 0
  for number, prompt in enumerate(prompts(trained, PROMPTS)):
    prompt = [*prompt, 32]  # a word begins
    want = posterior(cfg.model, trained.params, prompt)
    batch = batch_of(engine, [prompt] * DRAWS, LENGTH, number)
    found, _ = engine.decode_weighted(trained.params, batch)
    share = np.zeros(len(WORDS))
    for one in found:
      calls, drawn = calls + one.calls, drawn + one.tokens
      if not np.isfinite(one.log_weights).any():
        dead += 1
        continue
      w = np.exp(one.log_weights - one.log_weights.max())
      for answer, weight in zip(one.answers, w / w.sum()):
        if weight > 0:
          share[WORDS.index(bytes(answer.tolist()).decode())] += weight
    distances.append(0.5 * np.abs(share / max(share.sum(), 1e-9) - want).sum())
  return Measured(
    {"tv": float(np.mean(distances)), "calls": calls / drawn, "dead": dead / (PROMPTS * DRAWS)},
    {},
    {},
  )


TV, CALLS, BOUND = "total variation", "calls per token", "1 / P + 1"

TABLE = Table(
  name="decoding-awrs",
  title="Words under a constraint: distance to the exact posterior",
  rows=[
    *TRAINED,
    *(Row(n, evaluate_from="target", label=LABELS[n], settings={"method": n}) for n in METHODS),
    *(
      Row(f"v{n}", label=f"one step, made-up vocabulary of {n:,}", settings={"vocab": n})
      for n in VOCABULARIES
    ),
  ],
  columns=[
    Column("bits per byte", "bpb"),
    Column(TV, "tv", 3),
    Column(CALLS, "calls"),
    Column(BOUND, "bound"),
    Column("runs without an answer", "dead", 3),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "50 particles are nearer to the posterior than masks by half": lambda t: (
      0.5 * t["mask", TV] - t["awrs50", TV]
    ),
    "more particles are nearer: 50 before 5": lambda t: t["awrs5", TV] - t["awrs50", TV],
    "a token asks the constraint less than a tenth as often as masks do": lambda t: (
      0.1 * t["mask", CALLS] - t["awrs10", CALLS]
    ),
    "of a vocabulary of any size, a step asks 1 / P + 1 times at most, within 5 %": lambda t: min(
      1.05 * t[f"v{n}", BOUND] - t[f"v{n}", CALLS] for n in VOCABULARIES
    ),
  },
  source="arXiv 2504.05410 (tasks with models of 8 B)",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
