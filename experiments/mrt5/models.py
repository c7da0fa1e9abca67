"""The four models of MrT5's downstream tables, at any size."""

from jaxlm.experiments import Row

LABELS = {
  "byt5": "ByT5",
  "mrt5": "MrT5",
  "bp": "boundary pooling (BPT5)",
  "cp": "strided convolution (CANINE)",
}


def rows(config: str, kept: float, rate: int, *, prefix: str = "", overrides=None):
  """kept: share of tokens that go on, in MrT5's and the predictor's rows; rate: tokens per slot of
  the convolution.
  """
  reductions = {
    "byt5": {"model.reduction": None, "objective.controller": None},
    "mrt5": {"objective.controller.target": 1 - kept},
    "bp": {
      "model.reduction": lambda c: dict(
        kind="boundaries",
        layer=c["model"]["reduction"]["layer"],
        prior=kept,
        d_ff=c["model"]["d_ff"],
      ),
      "objective.controller": None,
    },
    "cp": {
      "model.reduction": lambda c: dict(
        kind="strided", layer=c["model"]["reduction"]["layer"], rate=rate
      ),
      "objective.controller": None,
    },
  }
  name = f"{prefix.replace(' ', '_')}_" if prefix else ""
  return [
    Row(
      f"{name}{kind}",
      config,
      (overrides or {}) | changes,
      label=f"{prefix}: {LABELS[kind]}" if prefix else LABELS[kind],
    )
    for kind, changes in reductions.items()
  ]
