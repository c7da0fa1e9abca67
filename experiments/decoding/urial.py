"""URIAL: where a tuned model differs from its base, and how near a constant prompt brings the base to it.

  python experiments/decoding/urial.py --scale smoke|small

Source: Lin et al., "The Unlocking Spell on Base LLMs", arXiv 2312.01552. The base model has read documents in
three registers, the tuned one was tuned on polite answers about other entities. Nothing here is about real
alignment or safety. The world's documents have a query and an answer per line, so that the constant prompt is
three such turns in the polite register; the paper's prompt has fences and a system text
(jaxlm/generation/constant_prompt.py).
"""

from experiments.decoding.register_pair import (
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


def measure(trained, overrides_at) -> Measured:
  """format: share of answers that are polite; facts: that hold the fact's value. Of `sft` also shares of
  shifted bytes by tag of the tuned model's answers, and by position.
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
    prefix = prompt_of("".join(query(f) + answer(f, register)[0] for f in shots))
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
  """Shares of bytes of the tuned model's answers whose class is shifted."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.data.tasks.registers import TAGS, answer, query
  from jaxlm.evaluation.token_shift import shares, token_shift

  base, network = base_of(trained), cfg.model.build()
  whole = jax.jit(lambda p, x: network.apply({"params": p}, x))
  width = cfg.data.seq_len
  found: dict[str, list] = {name: [] for name in (*TAGS, "start", "end", "all")}
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
    text, tags = answer(fact, "polite")
    own = bytes(x for x in given.tolist() if x < 256).decode("utf-8", "replace")
    place = np.arange(len(given))
    if text.startswith(own):  # otherwise the tags are not known
      for tag in TAGS:
        inside = np.asarray([tags[i] == tag for i in range(len(given))])
        if inside.any():
          found[tag].append(shares(shift, inside[None]))
    found["start"].append(shares(shift, (place < 8)[None]))
    if (place >= 16).any():
      found["end"].append(shares(shift, (place >= 16)[None]))
    found["all"].append(shares(shift, (place >= 0)[None]))
  out = {
    f"shifted@{name}": float(np.mean([s["shifted"] for s in each]))
    for name, each in found.items()
    if each
  }
  return out | {"unshifted": float(np.mean([s["unshifted"] for s in found["all"]]))}


FORMAT, FACTS = "polite answers", "right facts"
STYLE, CONTENT, UNSHIFTED = "shifted, style", "shifted, content", "unshifted, all"
START, END = "shifted, bytes 1 to 8", "shifted, from byte 17"

TABLE = Table(
  name="decoding-urial",
  title="Where tuning shifts bytes, and what a constant prompt does instead",
  rows=[
    *ROWS,
    Row("plain", evaluate_from="base", label="base, 3 terse turns", settings={"register": "terse"}),
    Row(
      "urial",
      evaluate_from="base",
      label="base, 3 polite turns (URIAL)",
      settings={"register": "polite"},
    ),
  ],
  columns=[
    Column(FORMAT, "format"),
    Column(FACTS, "facts"),
    Column(UNSHIFTED, "unshifted"),
    Column(STYLE, "shifted@style"),
    Column(CONTENT, "shifted@content"),
    Column(START, "shifted@start"),
    Column(END, "shifted@end"),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "style is shifted more than twice as often as content": lambda t: (
      t["sft", STYLE] - 2 * t["sft", CONTENT]
    ),
    "shifts are rarer behind byte 16 than in the first 8": lambda t: (
      t["sft", START] - t["sft", END]
    ),
    "more than 70 % of bytes are unshifted": lambda t: t["sft", UNSHIFTED] - 0.7,
    "the constant prompt has nine tenths of the tuned model's format": lambda t: (
      t["urial", FORMAT] - 0.9 * t["sft", FORMAT]
    ),
    "and its facts, within 2 points": lambda t: t["urial", FACTS] - t["sft", FACTS] + 0.02,
    "terse turns do not bring the format": lambda t: 0.1 - t["plain", FORMAT],
  },
  source="arXiv 2312.01552; 7.8 % of positions are shifted between Llama-2-7b and its chat model",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
