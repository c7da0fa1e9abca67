"""H-Net, Table 5: DNA, perplexity per base.

  python experiments/hnet/table5.py --scale smoke|small

Source: arXiv 2507.07955v2, Tables 5 and 7 (HG38, d_model 512, target 3 bases per chunk). The reduced scales read 21
bacterial genomes, of which species are held out whole: `jaxlm data prepare dna-bact` (four Debian packages, 69 MB).
The rows are not of equal FLOPs. At 3 bases a chunk, by the paper's formula, the H-Net of `smoke` costs 0.683 MFLOP a base,
the Transformer 0.563, Mamba-2 0.589 (H-Net: 21 and 16 % more); at `small`, whose
context is longer, 0.841, 1.283 and 0.589.
"""

from jaxlm.experiments import Column, Row, Scale, Table, paper
from jaxlm.experiments.measures import perplexity_at

TINY = "configs/hnet/tiny.py"
ROWS = {"isotropic": ("Transformer", 2.769), "mamba": ("Mamba-2", 2.757), "1stage": ("H-Net, m + T + m", 2.722)}
DNA = {"data.source": "prepared:dna-bact"}
CHUNKED = DNA | {"objective.targets": (3.0,)}

TABLE = Table(
    name="hnet-table5", title="H-Net, Table 5: perplexity per base",
    rows=[Row(name, f"{TINY}:{name}", CHUNKED if name == "1stage" else DNA, label=label)
          for name, (label, _) in ROWS.items()],
    columns=[Column("perplexity", "ppl@1x", 3)],
    scales={
        "smoke": Scale("widths 64/96, context 128 bytes, 1,200 steps of 1,024 bytes; minutes a row on 2 cores",
                       overrides={"train.steps": 1200, "train.log_every": 10, "train.save_every": 0, "eval.every": 0}),
        "small": Scale("widths 64/96, context 1,024 bytes, 5,000 steps of 65,536 bytes",
                       overrides={"data.seq_len": 1024, "data.batch_size": 64, "objective.capacities": None,
                                  "objective.multiple": 128, "model.dtype": "bfloat16", "train.steps": 5000,
                                  "train.log_every": 50, "eval.every": 0}),
    },
    measure=perplexity_at((1,)),
    published={(name, "perplexity"): paper(value, "Table 5") for name, (_, value) in ROWS.items()},
    source="arXiv 2507.07955v2, Tables 5 and 7, HG38",
    claims={"H-Net beats both isotropic models, at 16 to 21 % more FLOPs than theirs at smoke": lambda t: t["1stage", "perplexity"] < min(
        t["isotropic", "perplexity"], t["mamba", "perplexity"])})

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
