"""H-Net, Table 3: robustness under five kinds of noise, as bits per byte.

  python experiments/hnet/table3.py --scale smoke|small

Source: arXiv 2507.07955v2, Table 3: accuracy on perturbed HellaSwag and a robustness score, 100
(perturbed - 0.25) / (clean - 0.25). HellaSwag does not come with jaxlm: ours are bits per byte of
the same validation text, clean and perturbed by the same rules, so no number of the paper stands
beside them.
"""

from experiments.hnet.hnet_scales import RECIPE, SMALL, paper_configs
from experiments.hnet.perturb import PERTURBATIONS, bits_under_noise
from jaxlm.experiments import Column, Row, Scale, Table

TINY = "configs/hnet/tiny.py"
ROWS = {
  "bpe": "Transformer on BPE",
  "isotropic": "Transformer on bytes",
  "mamba": "Mamba-2 on bytes",
  "pool": "H-Net (pool)",
  "space": "H-Net (space)",
  "1stage": "H-Net (1-stage)",
  "2stage": "H-Net (2-stage)",
}

TABLE = Table(
  runs="hnet",
  name="hnet-table3",
  title="H-Net, Table 3: bits per byte under noise",
  rows=[Row(name, f"{TINY}:{name}", label=label) for name, label in ROWS.items()],
  columns=[
    Column("clean", "clean", 3),
    *(Column(name, name, 3) for name in PERTURBATIONS),
    Column("mean", "mean", 3),
    Column("mean - clean", "loss", 3),
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
    ),
    "small": SMALL,
    "paper": Scale(RECIPE, configs=paper_configs(ROWS)),
  },
  measure=bits_under_noise(),
  source="arXiv 2507.07955v2, Table 3: another measure, see above",
  claims={
    "noise costs a byte-level H-Net less than a BPE Transformer": lambda t: (
      t["bpe", "mean - clean"] - t["1stage", "mean - clean"]
    )
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
