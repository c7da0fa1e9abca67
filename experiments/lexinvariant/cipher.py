"""Lexinvariant language models, in-context deciphering: what the states of a frozen model say about
the cipher of its text.

  python experiments/lexinvariant/cipher.py --scale smoke|small|paper      (or: jaxlm table experiments/lexinvariant/cipher.py …)

Every text is under a substitution cipher of its own: `full` moves every character, `partial` the
letters. Two probes read the last states (jaxlm.evaluation.probes): the token probe says which plain
character stands at a position, the key probe what each cipher character seen so far stands for. The
exact posterior for toy sources is in bayes.py. The paper (arXiv 2305.16349, abstract) infers the
mapping "with high accuracy"; 99.6 % "via probing" is a third party's account, and which probe,
split and text length are unknown to us: no cell of the paper is printed.
"""

from experiments.lexinvariant.characters import LEXINVARIANT_PROSE, SCALES, STANDARD_PROSE
from experiments.lexinvariant.decipher import deciphered
from jaxlm.experiments import Column, Figure, Scale, Table

# A model that has to decipher 128 characters learns to count them first. Of the text's 28 commonest
# characters (others are one unknown) there is less to learn, and a window of 256 shows most of them.
LETTERS = Scale(
  "28 characters, 3 layers, d_model 96, window 256, 10,000 steps of 4,096 characters of two novels; about 25 core-minutes a row",
  num_seeds=3,
  overrides={
    "model.vocab_size": 30,
    "model.d_model": 96,
    "model.num_layers": 3,
    "model.unroll": 3,
    "model.mixer.num_heads": 3,
    "data.tokenizer": dict(kind="chars", vocab_size=30),
    "data.seq_len": 256,
    "schedule.warmup_steps": 200,
    "train.steps": 10_000,
    "train.save_every": 1000,
  },
)

TABLE = Table(
  name="lexinvariant-cipher",
  title="Characters deciphered from a frozen model's states, per cent",
  rows=[STANDARD_PROSE, LEXINVARIANT_PROSE],
  columns=[
    Column("token, full", "token@full", 1),
    Column("token, full, last quarter", "token_last@full", 1),
    Column("key, full", "key@full", 1),
    Column("key by frequency, full", "weighted@full", 1),
    Column("token, partial", "token@partial", 1),
    Column("token, partial, last quarter", "token_last@partial", 1),
    Column("key, partial", "key@partial", 1),
    Column("key by frequency, partial", "weighted@partial", 1),
    Column("commonest character", "common@full", 1),
  ],
  # Half as many steps as the model had, at most the 10,000 of the spec.
  scales=SCALES | {"smoke": LETTERS},
  measure=deciphered(steps=lambda c: min(c["train"]["steps"] // 2, 10_000)),
  source="arXiv 2305.16349: no values by cell known to us",
  claims={
    "a lexinvariant model's states decipher more than a standard model's, full cipher": lambda t: (
      t["lexinvariant_prose", "token, full, last quarter"]
      - t["standard_prose", "token, full, last quarter"],
      f"{t['lexinvariant_prose', 'token, full, last quarter']:.1f} and "
      f"{t['standard_prose', 'token, full, last quarter']:.1f} %",
    ),
    "and more than the commonest character would, by 30 points": lambda t: (
      t["lexinvariant_prose", "token, full, last quarter"]
      - t["lexinvariant_prose", "commonest character"]
      - 30
    ),
    "more context deciphers more": lambda t: (
      t["lexinvariant_prose", "token, full, last quarter"] - t["lexinvariant_prose", "token, full"]
    ),
  },
  figure=Figure(
    "token@full",
    "Characters deciphered by position, full cipher",
    "position in the window (characters)",
    "per cent right (token probe)",
    smooth=5,
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
