"""The scale `small` of the tables on bytes: the context of 1,024 bytes at which the rows still cost
the same.

Attention at the bytes sees 128 of them, an eighth of the context as in the paper's LlamaByte and
SpaceByte; at full length it would be half of a model and more. The row on BPE reads as many bytes
as the others and has a layer less. By the paper's formula the rows of table 2 are within 8 % of
0.59 MFLOP a byte (a test).
"""

from jaxlm.experiments import Scale

PAPER = "configs/hnet/paper.py"
RECIPE = "the paper's recipe: FineWeb-Edu, 220,000 steps of 2,097,152 bytes"
#: Rows that are called otherwise there.
LARGE = {
  "bpe": "transformer",
  "isotropic": "llamabyte",
  "mamba": "mambabyte",
  "1stage": "1stage_L",
  "2stage": "2stage_L",
}
CONTEXT, WINDOW = 1024, 128
BPE_TOKENS = 397  # at 2.58 bytes a token of the novel (`configs/hnet/tiny.py`)


def paper_configs(names) -> dict[str, str]:
  """{row: its configuration at scale paper}"""
  return {name: f"{PAPER}:{LARGE.get(name, name)}" for name in names}


def at_paper(config) -> bool:
  """Whether a row's configuration so far is the paper's."""
  return config["data"]["source"].startswith("array_record:")


def on_bpe(config) -> bool:
  return config["data"]["tokenizer"]["kind"] == "trained_bpe"


SMALL = Scale(
  "widths 64/96, context 1,024 bytes, windows of 128 in attention at the bytes, 5,000 steps of 65,536 bytes",
  overrides={
    "data.seq_len": lambda config: BPE_TOKENS if on_bpe(config) else CONTEXT,
    "model.layout": lambda config: "T3" if on_bpe(config) else config["model"]["layout"],
    "model.stages.0.attention.window": lambda config: None if on_bpe(config) else WINDOW,
    "data.batch_size": 64,
    "model.dtype": "bfloat16",
    "objective.capacities": None,
    "objective.multiple": 128,
    "train.steps": 5000,
    "train.log_every": 50,
    "eval.every": 0,
  },
)
