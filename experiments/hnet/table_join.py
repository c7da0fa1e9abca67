"""What H-Net adds to SpaceByte++, one by one: network norms, and the projection of the encoder's
output that starts at zero.

  python experiments/hnet/table_join.py --scale smoke

A question of ours. SpaceByte++ and H-Net (space) have the same layers and the same boundaries; in
the paper the second is better by 0.005 bits per byte (arXiv 2507.07955v2, Table 2), at `smoke` it
is worse.
"""

from experiments.hnet.chunks import bits_and_chunks
from jaxlm.experiments import Column, Row, Scale, Table, paper

TINY, BPB = "configs/hnet/tiny.py", "bits per byte"
LABELS = {
  "spacebyte++": "SpaceByte++",
  "space": "H-Net (space)",
  "pool": "H-Net (pool)",
  "1stage": "H-Net (1-stage)",
}
IDENTITY, NO_NORM = {"model.join": dict(residual="identity")}, {"model.network_norm": False}


def fast_projection(config):
  """Ten times the rate of the outer stage, which it belongs to."""
  return [*config["optimizer"]["lr_multipliers"], ("/w_residual$", 20.0)]


CHANGED = {
  "space_no_norm": ("space", NO_NORM, "no network norms"),
  "space_identity": ("space", IDENTITY, "no projection"),
  "space_fast": (
    "space",
    {"optimizer.lr_multipliers": fast_projection},
    "projection at ten times its rate",
  ),
  "pool_identity": ("pool", IDENTITY, "no projection"),
  "1stage_identity": ("1stage", IDENTITY, "no projection"),
}

TABLE = Table(
  runs="hnet",
  name="hnet-table-join",
  title="H-Net: what it adds to SpaceByte++, one by one",
  rows=[
    *(Row(name, f"{TINY}:{name}", label=label) for name, label in LABELS.items()),
    *(
      Row(name, f"{TINY}:{base}", overrides, label=f"{LABELS[base]}, {what}")
      for name, (base, overrides, what) in CHANGED.items()
    ),
  ],
  columns=[
    Column(BPB, "bpb", 3),
    Column("bytes per chunk", "bytes_per_chunk", 2),
    Column("F1, blank before a word", "at_word_spaces", 3),
    Column("random cuts", "at_word_spaces_chance", 3),
  ],
  scales={
    "smoke": Scale(
      "widths 64/96, context 128 bytes, 1,200 steps of 1,024 bytes; minutes a row on 2 cores",
      overrides={
        "train.steps": 1200,
        "train.log_every": 10,
        "train.save_every": 0,
        "eval.every": 0,
      },
    )
  },
  measure=bits_and_chunks(),
  published={
    ("spacebyte++", BPB): paper(0.760, "Table 2"),
    ("space", BPB): paper(0.755, "Table 2"),
    ("pool", BPB): paper(0.780, "Table 2"),
    ("1stage", BPB): paper(0.755, "Table 2"),
  },
  source="arXiv 2507.07955v2, Table 2, Large",
  claims={"H-Net (space) beats SpaceByte++": lambda t: t["spacebyte++", BPB] - t["space", BPB]},
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
