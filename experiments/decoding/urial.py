"""URIAL: where a tuned model differs from its base, and how near a constant prompt brings the base to it.

  python experiments/decoding/urial.py --scale smoke|small

Source: Lin et al., "The Unlocking Spell on Base LLMs", arXiv 2312.01552. The base model has read documents in
three registers, a tenth of them polite; the tuned one was tuned on polite answers about other entities. Nothing
here is about real alignment or safety. The world's documents have a query and an answer per line, so that the
constant prompt is three such turns in the polite register; the paper's prompt has fences and a system text
(jaxlm/generation/constant_prompt.py), for which one row has a line in front. The negative control is a base
model that has read no polite document: no prompt can bring out what is not there.
"""

from experiments.decoding.register_pair import (
  CONFIG,
  ROWS,
  RUNS,
  SCALES,
  STOPS,
  base_of,
  prompt_of,
  questions,
)
from jaxlm.experiments import Column, Measured, Row, Table

QUESTIONS, NEW, SHOTS = 32, 60, 3
SYSTEM = "Answer politely.\n"
BINS = {"1 to 8": (0, 8), "9 to 32": (8, 32), "from 33": (32, None)}
KNOWN = 0.9  # share of facts that the base must tell in the terse register


def measure(trained, overrides_at) -> Measured:
  """format: share of answers that are polite; facts: that hold the fact's value. Of `sft` also shares of
  shifted bytes, and the divergence, by tag and by position of the tuned model's answers.
  """
  import numpy as np

  from jaxlm.data.tasks.registers import CLOSING, GREETING, answer, query
  from jaxlm.generation.constant_prompt import AfterPrefix
  from jaxlm.generation.left_to_right import LeftToRight
  from jaxlm.generation.sampling import GREEDY
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  facts = questions(trained, QUESTIONS)
  params, shots = trained.params, []
  if trained.settings:
    register = trained.settings["register"]
    every = questions(trained, 10_000)
    shots = [f for f in every if f not in facts][:SHOTS] or every[:SHOTS]
    system = SYSTEM if trained.settings.get("system") else ""
    prefix = prompt_of(system + "".join(query(f) + answer(f, register)[0] for f in shots))
    engine = AfterPrefix(cfg.model, GREEDY, STOPS, prefix=tuple(prefix))
    prompts = [list(query(f).encode()) for f in facts]
  else:
    engine = LeftToRight(cfg.model, GREEDY, STOPS)
    prompts = [prompt_of(query(f)) for f in facts]
  answers = engine.generate(params, prompts, NEW).answers
  texts = [bytes(x for x in a.tolist() if x < 256).decode("utf-8", "replace") for a in answers]
  numbers = {
    "format": float(np.mean([t.startswith(GREETING) and t.endswith(CLOSING) for t in texts])),
    "facts": float(np.mean([f.value in t for f, t in zip(facts, texts)])),
  }
  if trained.config["data"].get("turns") == 1:
    numbers |= shifts(trained, cfg, facts, answers)
  return Measured(numbers, {}, {})


def shifts(trained, cfg, facts, answers) -> dict:
  """Shares of the bytes of the tuned model's answers whose class is shifted, and mean nats of
  D(tuned || base), by tag and by position.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.data.tasks.registers import TAGS, query
  from jaxlm.evaluation.token_shift import shares, token_shift

  base, network = base_of(trained), cfg.model.build()
  whole = jax.jit(lambda p, x: network.apply({"params": p}, x))
  width = cfg.data.seq_len
  found: dict[str, list] = {name: [] for name in (*TAGS, *BINS, "all")}
  for fact, given in zip(facts, answers):
    if not len(given):
      continue
    prompt = prompt_of(query(fact))
    n = len(prompt) + len(given)
    row = jnp.asarray([[*prompt, *given.tolist(), *[0] * (width - n)]], jnp.int32)
    tuned_TV, base_TV = (
      np.asarray(whole(p, row))[:, len(prompt) - 1 : n - 1] for p in (trained.params, base)
    )
    shift = token_shift(tuned_TV, base_TV, jnp.asarray(given)[None])
    place = np.arange(len(given))
    tags = np.asarray(tags_of(fact, bytes(x for x in given.tolist() if x < 256)))
    groups = {name: tags == name for name in TAGS} if len(tags) == len(given) else {}
    for name, (first, last) in BINS.items():
      groups[name] = (place >= first) & (place < (last or len(given)))
    for name, inside in (groups | {"all": place >= 0}).items():
      if inside.any():
        found[name].append(shares(shift, inside[None]))
  each = {name: values for name, values in found.items() if values}
  return {
    f"{kind}@{name}": float(np.mean([s[kind] for s in values]))
    for name, values in each.items()
    for kind in ("shifted", "unshifted", "kl")
  }


def tags_of(fact, given: bytes) -> list[str]:
  """The tag of every byte of a polite answer, whichever value it names; [] of another text."""
  from jaxlm.data.tasks.registers import ATTRIBUTES, answer

  for value in ATTRIBUTES[fact.attribute]:
    text, tags = answer(fact._replace(value=value), "polite")
    if text.encode().startswith(given):
      return tags[: len(given)]
  return []


def if_known(t, margin):
  """The margin, where the base tells enough facts in its own register for a comparison."""
  known = t["plain", FACTS]
  if known < KNOWN:
    return (
      None,
      f"the base tells {known:.0%} of the facts in the terse register; wanted {KNOWN:.0%}",
    )
  return margin


FORMAT, FACTS = "polite answers", "right facts"
STYLE, CONTENT, UNSHIFTED = "shifted, style", "shifted, content", "unshifted, all"
START, MIDDLE, END = (f"shifted, bytes {name}" for name in BINS)

TABLE = Table(
  name="decoding-urial",
  title="Where tuning shifts bytes, and what a constant prompt does instead",
  rows=[
    *ROWS,
    Row(
      "impolite",
      CONFIG,
      {"data.shares": [0.65, 0.35, 0.0]},
      label="base without polite documents",
    ),
    Row("plain", evaluate_from="base", label="base, 3 terse turns", settings={"register": "terse"}),
    Row("prose", evaluate_from="base", label="base, 3 prose turns", settings={"register": "prose"}),
    Row(
      "urial",
      evaluate_from="base",
      label="base, 3 polite turns (URIAL)",
      settings={"register": "polite"},
    ),
    Row(
      "system",
      evaluate_from="base",
      label="the same behind a system line",
      settings={"register": "polite", "system": True},
    ),
    Row(
      "control",
      evaluate_from="impolite",
      label="base without polite documents, 3 polite turns",
      settings={"register": "polite"},
    ),
  ],
  columns=[
    Column(FORMAT, "format"),
    Column(FACTS, "facts"),
    Column(UNSHIFTED, "unshifted@all"),
    Column(STYLE, "shifted@style", 3),
    Column(CONTENT, "shifted@content", 3),
    *(Column(title, f"shifted@{name}", 3) for title, name in zip((START, MIDDLE, END), BINS)),
    Column("nats, style", "kl@style", 3),
    Column("nats, content", "kl@content", 3),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "style is shifted more than twice as often as content": lambda t: if_known(
      t, t["sft", STYLE] - 2 * t["sft", CONTENT]
    ),
    "shifts are rarer from byte 33 on than in the first 8": lambda t: (
      t["sft", START] - t["sft", END]
    ),
    "more than 70 % of bytes are unshifted": lambda t: t["sft", UNSHIFTED] - 0.7,
    "the constant prompt has nine tenths of the tuned model's format": lambda t: (
      t["urial", FORMAT] - 0.9 * t["sft", FORMAT]
    ),
    "and its facts, within 2 points": lambda t: if_known(
      t, t["urial", FACTS] - t["sft", FACTS] + 0.02
    ),
    "neither terse nor prose turns bring the format": lambda t: (
      0.1 - max(t["plain", FORMAT], t["prose", FORMAT])
    ),
    "nor do polite turns, where the base has read no polite document": lambda t: (
      t["urial", FORMAT] - 0.5 - t["control", FORMAT]
    ),
  },
  source="arXiv 2312.01552; 7.8 % of positions are shifted between Llama-2-7b and its chat model",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
