"""H-Net, Table 4: a language without spaces, and code.

  python experiments/hnet/table4.py --scale smoke|small

Source: arXiv 2507.07955v2, Table 4 (XL; FineWeb-Edu-Chinese and Pile GitHub). The reduced scales read Chinese
verse, which has no spaces (`jaxlm data prepare chinese-verse`, one npm package), and the Python standard library's own
sources. A cut at spaces makes 3 bytes a chunk of Chinese (a character) and 8 of Python; its main network has three and six
layers there, so that the rows cost the same within 8 % of H-Net (2-stage) at its target, by the paper's formula (a test).
"""

import sysconfig

from jaxlm.experiments import Column, Row, Scale, Table, paper
from jaxlm.experiments.chunks import bits_and_chunks

TINY = "configs/hnet/tiny.py"
TEXTS = {"zh": "prepared:chinese-verse", "code": f"text:{sysconfig.get_path('stdlib')}/*.py"}
MAIN = {("space", "zh"): {"model.layout": "m2 [T3] m2"}, ("space", "code"): {"model.layout": "m2 [T6] m2"}}
LABELS = {"space": "H-Net (space)", "2stage": "H-Net (2-stage)", "isotropic": "Transformer on bytes"}
BPB, CHUNK = "bits per byte", "bytes per chunk"

TABLE = Table(
    name="hnet-table4", title="H-Net, Table 4: Chinese and code",
    rows=[Row(f"{name}_{text}", f"{TINY}:{name}", {"data.source": source} | MAIN.get((name, text), {}), label=f"{label}, {text}")
          for text, source in TEXTS.items() for name, label in LABELS.items()],
    columns=[Column(BPB, "bpb", 3), Column(CHUNK, "bytes_per_chunk", 2), Column("MFLOP per byte", "mflop", 3)],
    scales={
        "smoke": Scale("widths 64/96, context 128 bytes, 1,200 steps of 1,024 bytes; minutes a row on 2 cores",
                       overrides={"train.steps": 1200, "train.log_every": 10, "train.save_every": 0, "eval.every": 0}),
        "small": Scale("widths 64/96, context 1,024 bytes, 5,000 steps of 65,536 bytes",
                       overrides={"data.seq_len": 1024, "data.batch_size": 64, "objective.capacities": None,
                                  "objective.multiple": 128, "model.dtype": "bfloat16", "train.steps": 5000,
                                  "train.log_every": 50, "eval.every": 0}),
    },
    measure=bits_and_chunks(),
    published={("space_zh", BPB): paper(0.7478, "Table 4"), ("2stage_zh", BPB): paper(0.7032, "Table 4"),
               ("space_code", BPB): paper(0.3163, "Table 4"), ("2stage_code", BPB): paper(0.3161, "Table 4"),
               ("space_zh", CHUNK): paper(3.38, "Table 4"), ("2stage_zh", CHUNK): paper(5.81, "Table 4"),
               ("space_code", CHUNK): paper(7.97, "Table 4"), ("2stage_code", CHUNK): paper(7.23, "Table 4")},
    source="arXiv 2507.07955v2, Table 4, XL scale",
    claims={
        "learned chunks beat spaces where there are none (Chinese)": lambda t: t["2stage_zh", BPB] < t["space_zh", BPB],
        "learned chunks beat spaces in code": lambda t: t["2stage_code", BPB] < t["space_code", BPB],
        "learned chunks beat a Transformer on bytes in both": lambda t: all(
            t[f"2stage_{text}", BPB] < t[f"isotropic_{text}", BPB] for text in TEXTS),
    })

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
