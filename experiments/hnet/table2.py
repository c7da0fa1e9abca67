"""H-Net, Table 2: bits per byte of byte models at equal FLOPs, and what their chunks are.

  python experiments/hnet/table2.py --scale smoke|long|small|paper      (or: jaxlm table experiments/hnet/table2.py ...)

Source: Hwang, Wang and Gu, "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling", arXiv
2507.07955v2, Tables 1 and 2 (validation bits per byte on FineWeb-Edu, Large scale). FLOPs are those
of the paper's appendix B.
"""

from experiments.hnet.chunks import bits_and_chunks
from experiments.hnet.hnet_scales import RECIPE, SMALL, paper_configs
from jaxlm.experiments import Column, Figure, Row, Scale, Table, by_step, paper

TINY = "configs/hnet/tiny.py"
LABELS = {
  "bpe": "Transformer on BPE",
  "isotropic": "Transformer on bytes",
  "mamba": "Mamba-2 on bytes",
  "spacebyte": "SpaceByte",
  "spacebyte++": "SpaceByte++",
  "pool": "H-Net (pool)",
  "space": "H-Net (space)",
  "1stage": "H-Net (1-stage)",
  "2stage": "H-Net (2-stage)",
}

# No single override tells the rows apart: each names its own variant of the configuration file.
ROWS = [Row(name, f"{TINY}:{name}", label=label) for name, label in LABELS.items()]
BPB, CHUNK = "bits per byte", "bytes per chunk"
# SpaceByte's rule counts the byte after a word, punctuation and line breaks included; blanks before
# words only, and how
# to read all three: `experiments.hnet.chunks.alignment`, NOTES.md.
RULE, BLANKS, LETTERS = "F1, SpaceByte's rule", "F1, blank before a word", "F1, first letter"

TABLE = Table(
  name="hnet-table2",
  runs="hnet",
  title="H-Net, Table 2: bits per byte at equal FLOPs",
  rows=ROWS,
  columns=[
    Column(BPB, "bpb", 3),
    Column(CHUNK, "bytes_per_chunk", 2),
    Column(RULE, "at_spaces", 3),
    Column("random cuts, SpaceByte's rule", "at_spaces_chance", 3),
    Column(BLANKS, "at_word_spaces", 3),
    Column("random cuts, blanks", "at_word_spaces_chance", 3),
    Column(LETTERS, "at_letters", 3),
    Column("random cuts, letters", "at_letters_chance", 3),
    Column("MFLOP per byte", "mflop", 3),
  ],
  scales={
    "smoke": Scale(
      "widths 64/96, context 128 bytes, 1,200 steps of 1,024 bytes of one novel; minutes a row on 2 cores",
      overrides={
        "train.steps": 1200,
        "train.log_every": 10,
        "train.save_every": 0,
        "eval.every": 0,
      },
    ),
    "long": Scale(
      "as smoke, but 4,800 steps; a quarter of an hour a row on 2 cores",
      overrides={
        "train.steps": 4800,
        "schedule.warmup_steps": 480,
        "train.log_every": 40,
        "train.save_every": 1200,
        "eval.every": 0,
      },
    ),
    "small": SMALL,
    "paper": Scale(RECIPE, configs=paper_configs(LABELS)),
  },
  measure=bits_and_chunks(),
  published={
    ("bpe", BPB): paper(0.756, "Table 2"),
    ("bpe", CHUNK): paper(4.6, "Table 1"),
    ("spacebyte", BPB): paper(0.791, "Table 2"),
    ("spacebyte", CHUNK): paper(6.0, "Table 1"),
    ("spacebyte++", BPB): paper(0.760, "Table 2"),
    ("spacebyte++", CHUNK): paper(6.0, "Table 1"),
    ("isotropic", BPB): paper(0.859, "Table 2"),
    ("mamba", BPB): paper(0.845, "Table 2"),
    ("pool", BPB): paper(0.780, "Table 2"),
    ("space", BPB): paper(0.755, "Table 2"),
    ("1stage", BPB): paper(0.755, "Table 2"),
    ("2stage", BPB): paper(0.743, "Table 2"),
    ("pool", CHUNK): paper(6.0, "Table 1"),
    ("space", CHUNK): paper(6.0, "Table 1"),
    ("1stage", CHUNK): paper(4.8, "Table 1"),
    ("2stage", CHUNK): paper(7.0, "Table 1"),
  },
  source="arXiv 2507.07955v2, Tables 1 and 2, Large; paper targets 6 and (3, 3) bytes per chunk, ours 5 and (2.5, 2)",
  claims={
    "one learned stage beats fixed chunks": lambda t: t["pool", BPB] - t["1stage", BPB],
    "one learned stage beats a Transformer on bytes": lambda t: (
      t["isotropic", BPB] - t["1stage", BPB]
    ),
    "fixed chunks beat a Transformer on bytes": lambda t: t["isotropic", BPB] - t["pool", BPB],
    "Mamba-2 on bytes beats a Transformer on bytes": lambda t: (
      t["isotropic", BPB] - t["mamba", BPB]
    ),
    "one learned stage beats Mamba-2 on bytes": lambda t: t["mamba", BPB] - t["1stage", BPB],
    "chunks at spaces beat fixed chunks": lambda t: t["pool", BPB] - t["space", BPB],
    "SpaceByte++ beats SpaceByte": lambda t: t["spacebyte", BPB] - t["spacebyte++", BPB],
    "H-Net (space) beats SpaceByte++": lambda t: t["spacebyte++", BPB] - t["space", BPB],
    "two learned stages beat one": lambda t: t["1stage", BPB] - t["2stage", BPB],
    "learned boundaries meet the blanks before words more often than chance": lambda t: (
      t["1stage", BLANKS] - t["1stage", "random cuts, blanks"]
    ),
    "learned boundaries meet SpaceByte's rule more often than chance": lambda t: (
      t["1stage", RULE] - t["1stage", "random cuts, SpaceByte's rule"]
    ),
  },
  figure=Figure(
    "bits_per_byte",
    "Training loss, mean of 9 logged steps",
    "training step",
    "bits per byte, training",
    smooth=9,
    spacing=by_step,
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
