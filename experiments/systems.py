"""The six systems, as README.md lists them: the paper, one command to try, and the claims that its
verdict is made of.

A claim is named by its table (`jaxlm.experiments.reproduce.queue.Item.name`) and by its words there.
`bench/first_runs.py` runs the commands and keeps what they cost.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class System:
  """name: of its folders in configs/ and experiments/. arxiv: number of the paper.

  flags: what follows `jaxlm train` in the one command. claims: (table, claim) of the paper's main
  claims.
  """

  name: str
  title: str
  paper: str
  arxiv: str
  flags: Sequence[str]
  claims: Sequence[tuple[str, str]]

  @property
  def command(self) -> str:
    return f"jaxlm train {' '.join(self.flags)} --workdir=runs/{self.name}"


SYSTEMS = (
  System(
    "carope",
    "CARoPE",
    "Context-aware Rotary Position Embedding",
    "2507.23083",
    ("--config=configs/carope/demo.py",),
    (
      (
        "carope/table1",
        "RoPE degrades at twice its training length, CARoPE hardly (half of RoPE's loss at most)",
      ),
      ("carope/table1", "CARoPE is at least as good as RoPE at the training length"),
      ("carope/controls", "CARoPE beats RoPE at 2x"),
    ),
  ),
  System(
    "ilm",
    "Insertion language models",
    "Insertion Language Models: Sequence Generation with Arbitrary-Position Insertions",
    "2505.05755",
    (
      "--config=configs/ilm/text.py",
      "--config.data.source=mini:en",
      "--config.data.unit=sentence",
      "--config.data.seq_len=64",
    ),
    (
      ("ilm/table1", "ILM answers nearly every graph (at least 0.95)"),
      ("ilm/table1", "ILM beats left to right by at least 0.15"),
      ("ilm/table1", "ILM beats the Insertion Transformer by at least 0.15"),
    ),
  ),
  System(
    "hnet",
    "H-Net",
    "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
    "2507.07955",
    ("--config=configs/hnet/tiny.py",),
    (
      ("hnet/table2", "one learned stage beats fixed chunks"),
      ("hnet/table2", "one learned stage beats a Transformer on bytes"),
      ("hnet/table2", "two learned stages beat one"),
    ),
  ),
  System(
    "mrt5",
    "MrT5",
    "MrT5: Dynamic Token Merging for Efficient Byte-level Language Models",
    "2410.20771",
    ("--config=configs/mrt5/smoke.py",),
    (
      ("mrt5/span_corruption", "MrT5 at 50 % costs at most 0.1 bits per byte over ByT5"),
      (
        "mrt5/span_corruption",
        "at 50 % reduction MrT5's bits per byte are below those of the four baselines",
      ),
      ("mrt5/span_corruption", "at 50 % a forward pass takes less time than ByT5's"),
    ),
  ),
  System(
    "lact",
    "LaCT",
    "Test-Time Training Done Right",
    "2505.23884",
    ("--config=configs/lact/micro.py",),
    (
      (
        "lact/figure5",
        "LaCT (Muon) still learns beyond the window: its last quarter is below window attention's by 0.2",
      ),
      ("lact/figure5", "LaCT (Muon) ends below GLA + window and DeltaNet + window"),
      ("lact/figure5", "Muon < momentum < gradient descent at the end"),
    ),
  ),
  System(
    "lexinvariant",
    "Lexinvariant models",
    "Lexinvariant Language Models",
    "2305.16349",
    ("--config=configs/lexinvariant/chars.py",),
    (
      (
        "lexinvariant/bayes",
        "training brings the lexinvariant model down to the exact mixture",
      ),
      (
        "lexinvariant/figure_gap",
        "the gap at the end is less than the standard model's average perplexity, prose",
      ),
    ),
  ),
)
