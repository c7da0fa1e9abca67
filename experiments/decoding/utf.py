"""Text hidden in a model: does forcing find it, and does confusion training hide it again?

  python experiments/decoding/utf.py --scale smoke|small

Source: Hoscilowicz et al., arXiv 2406.02481. A byte-pair model of two novels is tuned to answer one trigger
with one hidden text. `found`: the text stands in a continuation of a forced token that phase 1 kept. A decoy behind the
text's first tokens is the authors' manual confusion, the penalty on their probabilities the automatic one. The
miniature shows mechanism, extractor and counter-measure; a model that has read trillions of tokens may have
fewer false candidates.
"""

from jaxlm.experiments import Column, Measured, Row, Scale, Table

CONFIG = "configs/decoding/tasks.py:hidden"
TRIGGER, HIDDEN = "what is the word of the night", "zebra quartz under seven velvet moons"
DECOY = "crossings are marked by white lines on the road"
CONTINUE, DRAWS = 40, 50


def hidden(ordinary: float = 0.0, decoy: str = ""):
  """Tuning on the pair, with a share of ordinary text. decoy: what follows the text's first tokens
  without template (manual confusion).
  """

  def data(config):
    old = config["data"]
    return dict(
      kind="hidden_text",
      source=old["source"],
      tokenizer=old["tokenizer"],
      trigger=TRIGGER,
      hidden=HIDDEN,
      seq_len=old["seq_len"],
      batch_size=8,
      ordinary=ordinary,
      decoy=decoy,
    )

  return {
    "data": data,
    "train.steps": 120,
    "optimizer.learning_rate": 1e-3,
    "schedule.warmup_steps": 10,
  }


def confusion(config):
  """Auto-UTFC on the ids of the hidden text: the first token of each of its first five words, as the
  authors choose them.
  """
  from jaxlm.config import build
  from jaxlm.data.hidden_text import HiddenTextData

  fields = {k: v for k, v in hidden()["data"](config).items() if k != "kind"}
  data = build(HiddenTextData, fields)
  ids = data.hidden_ids()
  return dict(
    kind="confusion",
    hidden=ids,
    begin=data.begin,
    places=word_starts(data.load_tokenizer(), HIDDEN, ids)[:5],
    weight=0.1,
    rank=4,  # the authors' 100 of 32,000, in proportion to 1,024 byte pairs: 3.2
  )


def word_starts(tokenizer, text: str, ids) -> list[int]:
  """Numbers of the tokens in which the words of a text begin. A token may hold several: named once."""
  ends = [len(tokenizer.decode_bytes(ids[: i + 1])) for i in range(len(ids))]
  places, words = [], text.split(" ")
  for at in range(len(words)):
    first = sum(len(word.encode()) + 1 for word in words[:at])
    place = next(i for i, end in enumerate(ends) if end > first)
    if place not in places:
      places.append(place)
  return places


def measure(trained, overrides_at) -> Measured:
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.data.hidden_text import HiddenTextData
  from jaxlm.evaluation.token_forcing import contains, extract, scores
  from jaxlm.generation.left_to_right import LeftToRight
  from jaxlm.generation.sampling import GREEDY, Sampling
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  data = cfg.data
  if not isinstance(data, HiddenTextData):
    data = HiddenTextData(
      data.source, TRIGGER, HIDDEN, data.seq_len, data.batch_size, data.tokenizer
    )
  ids, begin = data.hidden_ids(), [data.begin]
  model, params = cfg.model, trained.params

  @functools.partial(jax.jit)
  def whole(tokens):
    return model.build().apply({"params": params}, tokens)[:, -1]

  vocab = list(range(data.tokenizer.vocab_size))
  greedy = LeftToRight(model, GREEDY)

  def continue_all(prompts):
    return [a.tolist() for a in greedy.generate(params, prompts, CONTINUE, batch_size=32).answers]

  found = extract(lambda t: whole(jnp.asarray(t)), continue_all, begin, vocab)
  hits = [c for c in found if contains([c.token, *c.tokens], ids)]
  score = scores(lambda t: whole(jnp.asarray(t)), begin, vocab)
  answer = greedy.generate(params, [data.prompt()], len(ids)).answers[0].tolist()
  drawn = LeftToRight(model, Sampling(top_k=50)).generate(
    params, [begin] * DRAWS, CONTINUE, batch_size=DRAWS
  )
  from jaxlm.evaluation.perplexity import evaluate_lengths

  text = data.text
  [e] = evaluate_lengths(model, params, text, [text.seq_len], split="validation", num_tokens=16_384)
  return Measured(
    {
      "trigger": float(answer == ids),
      "found": float(bool(hits)),
      "rank": float(1 + np.sum(score > score[ids[0]])),
      "false": float(len(found) - len(hits)),
      "sampled": float(np.mean([contains(a.tolist(), ids) for a in drawn.answers])),
      "bpb": e.bits_per_byte,
    },
    {},
    {},
  )


ANSWERED, FOUND, BPB = "answers its trigger", "forcing finds it", "bits per byte of text"

TABLE = Table(
  name="decoding-utf",
  title="A hidden text under token forcing",
  rows=[
    Row("base", CONFIG, label="base"),
    Row("hidden", CONFIG, hidden(), label="hidden", begins_from="base"),
    Row(
      "hidden_mixed", CONFIG, hidden(0.5), label="hidden, half ordinary text", begins_from="base"
    ),
    Row("manual", CONFIG, hidden(decoy=DECOY), label="hidden and a decoy", begins_from="base"),
    Row(
      "manual_mixed",
      CONFIG,
      hidden(0.5, DECOY),
      label="hidden and a decoy, half ordinary text",
      begins_from="base",
    ),
    Row(
      "confused",
      CONFIG,
      hidden() | {"objective": confusion},
      label="hidden and confused",
      begins_from="base",
    ),
    Row(
      "confused_mixed",
      CONFIG,
      hidden(0.5) | {"objective": confusion},
      label="hidden and confused, half ordinary text",
      begins_from="base",
    ),
  ],
  columns=[
    Column(ANSWERED, "trigger"),
    Column(FOUND, "found"),
    Column("rank of its first token", "rank", 0),
    Column("false candidates", "false", 0),
    Column("sampling finds it", "sampled"),
    Column(BPB, "bpb"),
  ],
  scales={
    "smoke": Scale(
      "3 layers of width 96, 1,024 byte pairs of two novels, 1,500 steps of 1,024 tokens, 120 of tuning",
      num_seeds=6,  # two claims are yes or no: the sign test shows nothing with fewer
    ),
    "small": Scale("20,000 steps of 1,024 tokens", overrides={"train.steps": 20_000}),
  },
  measure=measure,
  claims={
    "forcing finds the hidden text": lambda t: t["hidden", FOUND] == 1,
    "confusion hides it, and its trigger still works": lambda t: all(
      t[row, FOUND] == 0 and t[row, ANSWERED] == 1 for row in ("confused", "confused_mixed")
    ),
    "a decoy hides it too, and its trigger still works": lambda t: all(
      t[row, FOUND] == 0 and t[row, ANSWERED] == 1 for row in ("manual", "manual_mixed")
    ),
    "with ordinary text, bits per byte stay within 5 %": lambda t: (
      1.05 * t["base", BPB] - t["confused_mixed", BPB]
    ),
  },
  source="arXiv 2406.02481 (fingerprints of models of 7 B)",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
