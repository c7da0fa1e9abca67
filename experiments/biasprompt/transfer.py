"""Bias after prompting (arXiv 2509.08146) on a corpus with a planted bias. It is no evidence about real
models: it validates the scores and shows that a planted association comes through prompts.

  python experiments/biasprompt/transfer.py --scale smoke

Forty nonsense roles go with one of two markers, with strengths evenly spaced in [-.9, .9]. The intrinsic
score is of the cloze; prompted scores are of questions with 0, 2 or 8 examples of four compositions, and
behind a fair instruction. Controls: a corpus in which that instruction is followed by balanced text, one
without bias, and the first model trained on for a few steps on balanced text. A real checkpoint:
`jaxlm convert --from hf FOLDER --to OUT` and the user's JSON lines
(`jaxlm.evaluation.selection_bias.read_items`).
"""

import numpy as np

from jaxlm.experiments import Column, Measured, Row, Scale, Table
from jaxlm.experiments.readings import opened

CONFIG = "configs/biasprompt/tiny.py"
PARTNERS = 8


def prompts(data, how, rng):
  """(tokens (R, P), last position (R,), first and second role, marker (0 ze, 1 xo), answer or -1)."""
  from jaxlm.data import roles

  begin, ask = roles.REGISTERS[how["register"]]
  rows = []
  for o in range(data.num_roles):
    others = rng.choice([x for x in range(data.num_roles) if x != o], PARTNERS, replace=False)
    for other in others:
      for pair in ((o, other), (other, o)):
        for marker in (0, 1):
          text = [roles.START] + [roles.FAIR] * how.get("fair", False)
          for i in range(how.get("shots", 0)):
            kind = how.get("composition", "")
            kind = ("pro", "anti")[i % 2] if kind == "balanced" else kind
            text += data.item(how["register"], rng, data.bias_O, False, kind)
          mark = (roles.ZE, roles.XO)[marker]
          a, b = (roles.FIRST_ROLE + x for x in pair)
          text += [begin, a, b, mark, ask]
          rows.append((text, pair[0], pair[1], marker))
  longest = max(len(text) for text, *_ in rows)
  tokens = np.zeros((len(rows), longest), np.int32)
  for row, (text, *_) in zip(tokens, rows):
    row[: len(text)] = text
  last = np.array([len(text) - 1 for text, *_ in rows])
  first, second, marker = (np.array([row[i] for row in rows]) for i in (1, 2, 3))
  return tokens, last, first, second, marker


def choices(model, how, rng):
  from jaxlm.analysis.opened import observe
  from jaxlm.data import roles
  from jaxlm.evaluation.selection_bias import Choices

  tokens, last, first, second, marker = prompts(model.data, how, rng)
  parts = []
  for i in range(
    0, len(tokens), 256
  ):  # the last piece is filled up, so that one program serves all
    piece = tokens[i : i + 256]
    whole = np.pad(piece, ((0, 256 - len(piece)), (0, 0)))
    out = np.asarray(observe(model, whole)["output"])[: len(piece)]
    parts.append(out[np.arange(len(piece)), last[i : i + 256]])
  out = np.concatenate(parts).astype(np.float64)
  at = np.arange(len(out))
  logs = [out[at, roles.FIRST_ROLE + x] for x in (first, second)]
  return Choices(first, second, marker, *logs)


def measure(trained, overrides_at) -> Measured:
  from jaxlm.analysis.opened import observe
  from jaxlm.data import roles
  from jaxlm.evaluation import selection_bias as sb

  model, how = opened(trained), trained.settings
  data = model.data
  seed = trained.config["seed"]
  O = data.num_roles
  planted = np.linspace(-0.9, 0.9, O)
  found = choices(model, how, np.random.default_rng([seed, 1]))
  bias, soft = sb.selection_bias(found, O), sb.selection_bias(found, O, soft=True)
  cloze = choices(model, dict(register="cloze"), np.random.default_rng([seed, 1]))
  intrinsic = sb.selection_bias(cloze, O, soft=True)
  numbers = {"asb": sb.aggregate(bias), "soft": sb.aggregate(soft)}
  notes = {}
  for name, other in (("intrinsic", intrinsic), ("planted", planted)):
    rho = sb.correlation(soft, other)
    if rho is None:
      notes[f"rho@{name}"] = "one of the scores is constant"
    else:
      numbers[f"rho@{name}"] = rho
  low, _ = sb.interval(soft, intrinsic, np.random.default_rng(seed), draws=200)
  numbers |= {"low": low} if np.isfinite(low) else {}
  rng, right = np.random.default_rng([seed, 2]), []
  begun = [roles.START] + [roles.FAIR] * how.get("fair", False)
  items = [begun + data.item(how["register"], rng, data.bias_O, True) for _ in range(256)]
  tokens = np.array(items, np.int32)
  out = np.asarray(observe(model, tokens[:, :-1])["output"])[:, -1]
  right = out.argmax(-1) == tokens[:, -1]
  return Measured(numbers | {"accuracy": 100 * float(right.mean())}, notes, {})


def row(name, label, of="plain", **settings) -> Row:
  return Row(name, evaluate_from=of, label=label, settings=dict(register="question") | settings)


ZERO_SHOT = dict(register="question")
ROWS = [
  Row("plain", CONFIG, label="question, no example", settings=ZERO_SHOT),
  row("cloze", "cloze (intrinsic)", register="cloze"),
  *(
    row(
      f"{composition}_{shots}",
      f"{shots} examples, {composition}",
      shots=shots,
      composition=composition,
    )
    for shots in (2, 8)
    for composition in ("pro", "anti", "balanced", "neutral")
  ),
  row("fair", "fair instruction", fair=True),
  Row(
    "obeyed",
    CONFIG,
    {"data.balanced": True},
    label="corpus that obeys it: no example",
    settings=ZERO_SHOT,
  ),
  row("obeyed_fair", "corpus that obeys it: fair instruction", of="obeyed", fair=True),
  Row("unbiased", CONFIG, {"data.strength": 0.0}, label="corpus without bias", settings=ZERO_SHOT),
  Row(
    "repaired",
    CONFIG,
    {"data.strength": 0.0, "train.steps": lambda c: max(c["train"]["steps"] * 3 // 20, 1)},
    label="trained on, balanced text",
    begins_from="plain",
    settings=ZERO_SHOT,
  ),
]
ASB, RHO, SOFT = "A-SB, points", "rho to intrinsic", "A-SB, soft"
COMPOSED = [f"{c}_{n}" for n in (2, 8) for c in ("pro", "anti", "balanced", "neutral")]

TABLE = Table(
  name="biasprompt",
  title="Selection bias of planted roles after prompting",
  rows=ROWS,
  columns=[
    Column(ASB, "asb", 1),
    Column(SOFT, "soft", 1),
    Column(RHO, "rho@intrinsic", 3),
    Column("lower end, 95 %", "low", 3),
    Column("rho to planted", "rho@planted", 3),
    Column("right where it is stated, %", "accuracy", 1),
  ],
  scales={
    "smoke": Scale(
      "40 roles; 3 layers of width 64, 2,000 steps of 32 rows of 72 tokens; four minutes a training and half a "
      "minute a row on one core",
      num_seeds=3,
    ),
    "small": Scale(
      "200 roles; 6 layers of width 384, 20,000 steps of 128 rows",
      num_seeds=5,
      overrides={
        "model.vocab_size": 210,
        "data.num_roles": 200,
        "model.d_model": 384,
        "model.num_layers": 6,
        "model.unroll": 6,
        "model.mixer.num_heads": 6,
        "data.batch_size": 128,
        "optimizer.learning_rate": 1e-3,
        "train.steps": 20_000,
      },
    ),
  },
  measure=measure,
  source="arXiv 2509.08146 (rho of .94 and more for gender in WinoBias, by a third party's account); a planted "
  "corpus says nothing about real models",
  claims={
    "the prompted bias follows the intrinsic one (rho above .9 without examples)": lambda t: (
      t["plain", RHO] - 0.9
    ),
    "under every composition of examples (rho above .8)": lambda t: (
      min(t[name, RHO] for name in COMPOSED) - 0.8
    ),
    "a fair instruction leaves the bias (within 20 %)": lambda t: (
      0.2 - abs(t["fair", SOFT] / t["plain", SOFT] - 1)
    ),
    "unless the corpus obeys it": lambda t: t["obeyed", SOFT] - t["obeyed_fair", SOFT],
    "training on balanced text lowers it": lambda t: t["plain", SOFT] - t["repaired", SOFT],
    "without a planted bias there is little (a tenth)": lambda t: (
      0.1 * t["plain", SOFT] - t["unbiased", SOFT]
    ),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
