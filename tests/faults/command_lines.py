"""Seeded command lines: good ones, and good ones with words lost, doubled, exchanged, misspelled or
made strange.
"""

import pathlib
import random

ROOT = pathlib.Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "carope" / "tiny.py")
#: A run whose training takes a second.
SMALL = {
  "model.d_model": 32,
  "model.num_layers": 1,
  "model.mixer.num_heads": 2,
  "data.seq_len": 16,
  "data.batch_size": 8,
  "train.steps": 1,
  "eval.num_tokens": 64,
  "eval.every": 0,
}
VALUES = (
  "",
  "0",
  "-1",
  "1",
  "1e3",
  "1e30",
  "nan",
  "inf",
  "none",
  "None",
  "True",
  "x",
  "[]",
  "{}",
  "{'kind': 'rope'}",
  "('a', 1)",
  "(1, 2",
  "../x",
  "/proc/nothing",
  "/dev/null",
  "file",
  "empty",
  "torn.py",
  "link",
  "a\0b",
  "é",
  "\udcff",
  "run",
  "weights",
  "hf",
  "9" * 400,
  "--",
  "-",
  "=",
  "*",
  "[1]",
  "~nobody/x",
  "gs://",
  "x" * 300,
  "rope",
  "carope",
  "adamw",
  "[" * 200,
)
KEYS = (
  "seed",
  "model",
  "model.kind",
  "model.d_model",
  "model.mixer",
  "model.mixer.kind",
  "model.position",
  "model.position.kind",
  "model.position.rope_theta",
  "model.stages.0.d_ff",
  "data",
  "data.source",
  "data.tokenizer",
  "data.tokenizer.kind",
  "data.seq_len",
  "optimizer",
  "optimizer.kind",
  "optimizer.learning_rate",
  "schedule",
  "schedule.kind",
  "train",
  "train.steps",
  "train.init_from",
  "train.profile",
  "train.debug",
  "eval.lengths",
  "eval.split",
  "mesh.fsdp",
  "objective",
  "objective.kind",
  "nothing",
  "model.",
  ".",
  "",
)


def good(folder: pathlib.Path) -> list[list[str]]:
  """In a folder that holds `run` and `weights`."""
  config = f"--config={TINY}"
  return [
    ["train", config, "--workdir=w", *(f"--config.{key}={value}" for key, value in SMALL.items())],
    ["eval", "--run", "run", "--lengths=8,16", "--num_tokens", "64", "--json"],
    [
      "eval",
      "--run",
      "run",
      "--step",
      "1",
      "--by-position",
      "--split=validation",
      "--num_tokens=64",
    ],
    ["eval", "--run=weights", "--run", "run", "--config", TINY, "--num_tokens=64"],
    [
      "generate",
      "--run",
      "run",
      "--prompt",
      "Call me",
      "--max_new_tokens",
      "2",
      "--temperature",
      "0",
    ],
    [
      "generate",
      "--run",
      "run",
      "--prompt",
      "a",
      "--prompt",
      "b",
      "--max_new_tokens=2",
      "--top_k=3",
      "--top_p=0.9",
      "--seed=1",
      "--json",
    ],
    ["convert", "--from", "run", "--to", "out", "--dry-run"],
    ["convert", "--from", "run", "--to", "hf", "out", "--dry-run", "--dtype", "bfloat16"],
    ["convert", "--from", "weights", "--to", "out", "--dry-run", "--step=1"],
    [
      "convert",
      "--from",
      "hf",
      "foreign",
      "--to",
      "out",
      "--dry-run",
      "--seq-len",
      "16",
      "--ignore-field",
      "x",
    ],
    ["data", "list"],
    ["data", "info", "prose-small"],
    ["data", "list", "--data-dir", "empty"],
    ["verify", "empty"],
    ["verify", "--help"],
    ["preflight", config, "--cpu=0", "--program", "train,eval", "--mesh=data=1"],
    ["preflight", config, "--topology=v5e:x", "--json"],
    [
      "table",
      str(ROOT / "experiments/carope/table1.py"),
      "--scale=none",
      "--row",
      "rope",
      "--seeds",
      "0",
    ],
    ["--version"],
    ["help"],
  ]


def changed(line: list[str], rng: random.Random, others: list[list[str]]) -> list[str]:
  line = list(line)
  for _ in range(rng.choice((1, 1, 2, 3))):
    at, kind = (
      rng.randrange(len(line) + 1),
      rng.choice(
        ("lose", "double", "value", "value", "value", "key", "key", "other", "letter", "word")
      ),
    )
    word = line[at] if at < len(line) else ""
    if kind == "lose" and word:
      del line[at]
    elif kind == "double":
      line.insert(at, word)
    elif kind == "value" and "=" in word:
      line[at] = word.rpartition("=")[0] + "=" + rng.choice(VALUES)
    elif kind == "value" and word and not word.startswith("--") and at:
      line[at] = rng.choice(VALUES)
    elif kind == "key":
      line.insert(max(at, 1), f"--config.{rng.choice(KEYS)}={rng.choice(VALUES)}")
    elif kind == "other":
      line.insert(at, rng.choice(rng.choice(others)))
    elif kind == "letter" and word:
      letter = rng.randrange(len(word))
      line[at] = (
        word[:letter] + rng.choice(("", "x", "-", "=", ".", word[letter] * 2)) + word[letter + 1 :]
      )
    elif kind == "word":
      line.insert(at, rng.choice(VALUES))
  return line
