"""GrAInS (arXiv 2507.18043): steering along the state change of ablating the tokens that gradients find.

  python experiments/grains/steering.py --scale smoke

The stand-in for an 8 B model is a model of two styles that planted cue words switch; prompts have the
cue of the blunt style, and steering is towards the formal one. Vectors are of 50 calibration prompts,
one per style's cue in turn. Integrated gradients take 256 steps of the logarithm, and a column has their
gap of completeness; the release's 20 even steps are a row of their own. Fluency is exact: the share of
continuations that are an opener, the noun and a closer; the style is the opener's. The last token of the
prompt is moved, where the opener is said; the release moves every position, which overwrites the noun
and the closer here. A real checkpoint: `jaxlm convert --from hf FOLDER --to OUT`, then
`jaxlm.analysis.steering` on `jaxlm.open_model(OUT)`. Ours ablates prompt tokens only; the release can
ablate the answer as well.
"""

import numpy as np

from jaxlm.experiments import Column, Measured, Row, Scale, Table
from jaxlm.experiments.readings import opened

CONFIG = "configs/grains/tiny.py"
ALPHAS = (0.25, 0.5, 1.0, 2.0)  # of the mean norm of the states that are moved
CALIBRATION, PROMPTS, TOP = 50, 200, 2
SLOTS = ("openers", "closers")
LAYER = 1


def measure(trained, overrides_at) -> Measured:
  import jax

  from jaxlm.analysis import steering as st
  from jaxlm.analysis.attribution import METHODS, metrics
  from jaxlm.analysis.opened import intervene
  from jaxlm.data.planted import MASK, require_planted

  model, how = opened(trained), trained.settings
  data, seed = model.data, trained.config["seed"]
  rng = np.random.default_rng([seed, 7])
  key = jax.random.key(seed)

  def prompts(count, style, cued=True):
    rows = [
      data.draw(rng, style=i % 2 if style is None else style, cued=cued) for i in range(count)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  calibration, asked, neutral = (
    prompts(CALIBRATION, None),
    prompts(PROMPTS, 1),
    prompts(64, 0, False),
  )
  require_planted(calibration["cue"], "cue")
  formal, blunt = (data.words(style)["openers"] for style in (0, 1))

  def response(words, count):
    return rng.choice(words, (count, 1))

  pair = st.preference(
    model.config,
    model.params,
    calibration["prompt"],
    response(formal, CALIBRATION),
    response(blunt, CALIBRATION),
  )
  numbers = {}
  P = data.prompt_len
  keep = np.isin(calibration["prompt"], (0, 1, 2))  # special tokens are never ablated
  v = None
  if how["method"] == "difference":  # of the two responses, without attribution
    plus = np.concatenate([pair.plus.tokens_BT, pair.plus.targets_B[:, None]], axis=1)
    minus = np.concatenate([pair.minus.tokens_BT, pair.minus.targets_B[:, None]], axis=1)
    args = (model.config, model.params)
    v = st.direction(st.states(*args, plus, LAYER) - st.states(*args, minus, LAYER))
  elif how["method"] != "none":
    kind = "gradient_x_input" if how["method"] == "random" else how["method"]
    method = METHODS.build({"kind": kind} | how.get("steps", {}))
    a = st.attribute(method, pair, P, key)
    if kind == "integrated_gradients":
      numbers["gap"] = 100 * metrics.completeness_gap(pair.plus, method(pair.plus, key))
    select = "rand" if how["method"] == "random" else None
    found = {}
    for side in ("pos", "neg"):
      chosen = st.choose(a, TOP, select or side, rng, keep)
      found[side] = st.shifts(pair.plus, chosen, MASK, LAYER)
      # The two cues pull in opposite directions: "pos" finds the formal one, "neg" the blunt one.
      style = calibration["style"] == (0 if side == "pos" else 1)
      hits = (chosen & calibration["cue"]).any(axis=1)[style]
      numbers[f"cue@{side}"] = 100 * float(hits.mean())
    parts = {side: st.direction(d, how["direction"]) for side, d in found.items()}
    v = {"pos": parts["pos"], "neg": -parts["neg"], "both": parts["pos"] - parts["neg"]}[
      how["side"]
    ]

  def log_p(batch, changes):
    out = np.asarray(intervene(model, batch["prompt"], changes)["output"][:, -1], np.float64)
    out = out - out.max(-1, keepdims=True)
    return out - np.log(np.exp(out).sum(-1, keepdims=True))

  plain = log_p(neutral, {})
  # Every direction is as long as the states, so that methods are compared at equal lengths.
  asked_BD = st.states(model.config, model.params, asked["prompt"], LAYER)
  length = float(np.linalg.norm(asked_BD, axis=-1).mean())
  words = {name: np.concatenate([data.words(style)[name] for style in (0, 1)]) for name in SLOTS}
  best = None
  for alpha in ALPHAS if v is not None else (0.0,):

    def changes(T, alpha=alpha):  # the last token of the prompt is moved
      if v is None:
        return {}
      unit, at_T = v / max(np.linalg.norm(v), 1e-9), np.arange(T) == P - 1
      return st.steered(unit, alpha, LAYER, scale=length, at_T=at_T)

    out = log_p(asked, changes(P))
    answers = st.continued(model, asked["prompt"], 3, changes(P + 3), key)
    noun = np.array([row[np.isin(row, data.nouns)][0] for row in asked["prompt"]])
    formed = np.isin(answers[:, 0], words["openers"]) & (answers[:, 1] == noun)
    formed &= np.isin(answers[:, 2], words["closers"])
    moved = log_p(neutral, changes(P))
    read = {
      "preference": 100 * float(np.mean(out[:, formal].max(1) > out[:, blunt].max(1))),
      "style": 100 * float(np.mean(formed & np.isin(answers[:, 0], formal))),
      "parsed": 100 * float(np.mean(formed)),
      "kl": float(np.mean(np.sum(np.exp(plain) * (plain - moved), axis=1))),
      "alpha": alpha,
    }
    numbers[f"style@{alpha:g}"] = read["style"]
    if best is None or read["style"] > best["style"]:
      best = read
  return Measured(numbers | best, {}, {})


def row(name, label, **settings) -> Row:
  return Row(name, evaluate_from="none", label=label, settings=settings)


COMPLETE, RELEASED = dict(steps=256, decades=24), dict(steps=20)
IG = dict(method="integrated_gradients", direction="mean", steps=COMPLETE)
ROWS = [
  Row("none", CONFIG, label="not steered", settings=dict(method="none")),
  row("difference", "mean difference of responses", method="difference"),
  row("random", "random tokens", method="random", direction="mean", side="both"),
  row(
    "gradient", "gradient x input, both", method="gradient_x_input", direction="mean", side="both"
  ),
  row("ig_pos", "integrated gradients, pos", side="pos", **IG),
  row("ig_neg", "integrated gradients, neg", side="neg", **IG),
  row("ig_both", "integrated gradients, both", side="both", **IG),
  row("ig_released", "both, 20 even steps", side="both", **(IG | dict(steps=RELEASED))),
  row("pca_both", "both, principal component", side="both", **(IG | dict(direction="pca"))),
]
STYLE, PARSED = "formal and well formed, %", "well formed, %"

TABLE = Table(
  name="grains",
  title="Continuations in the steered style, at the best of four strengths",
  rows=ROWS,
  columns=[
    Column(STYLE, "style", 1),
    Column(PARSED, "parsed", 1),
    Column("prefers formal, %", "preference", 1),
    Column("strength", "alpha", 1),
    Column("KL on neutral prompts", "kl", 3),
    Column("pos finds the formal cue, %", "cue@pos", 1),
    Column("neg finds the blunt cue, %", "cue@neg", 1),
    Column("gap of completeness, %", "gap", 2),
    *(Column(f"formal at {a:g}, %", f"style@{a:g}", 1) for a in ALPHAS),
  ],
  scales={
    "smoke": Scale(
      "3 layers of width 64, 600 steps of 64 rows; 50 prompts of calibration, 200 scored; a minute of training and "
      "half a minute a row on one core",
      num_seeds=3,
    ),
    "small": Scale(
      "12 layers of width 512, 10,000 steps of 256 rows",
      num_seeds=3,
      overrides={
        "model.d_model": 512,
        "model.num_layers": 12,
        "model.unroll": 4,
        "model.mixer.num_heads": 8,
        "data.batch_size": 256,
        "data.prompt_len": 32,
        "optimizer.learning_rate": 3e-4,
        "train.steps": 10_000,
      },
    ),
  },
  measure=measure,
  source="arXiv 2507.18043; its numbers are of TruthfulQA and of 8 B models",
  claims={
    "integrated gradients find the planted cues (80 %)": lambda t: (
      t["ig_both", "neg finds the blunt cue, %"] - 80
    ),
    "both sides beat random tokens by ten points of style": lambda t: (
      t["ig_both", STYLE] - t["random", STYLE] - 10
    ),
    "at equal fluency (within five points)": lambda t: (
      t["ig_both", PARSED] - t["random", PARSED] + 5
    ),
    "steering raises the style": lambda t: t["ig_both", STYLE] - t["none", STYLE],
    "and beats the mean difference": lambda t: t["ig_both", STYLE] - t["difference", STYLE],
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
