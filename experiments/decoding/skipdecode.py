"""SkipDecode: bits per byte over the nominal speed-up, against early exit and random skipping.

  python experiments/decoding/skipdecode.py --scale smoke|small

Source: Del Corro et al., "SkipDecode", arXiv 2307.02628. Every row is trained further from the full model
with its own schedule; a speed-up is layers over mean budget, not a time. The paper's models are OPT of 1.3
and 6.7 B parameters, its tasks E2E, Reddit-TLDR and CNN-DM.
"""

from experiments.decoding.pair import CONFIG, SMALL, bits_per_byte
from jaxlm.experiments import Column, Measured, Row, Scale, Table

SPEEDS = (2, 3, 5)
KEEPS = {"last": "SkipDecode", "first": "early exit", "random": "random layers"}


def schedule(speed: float, keep: str):
  def of(config):
    from jaxlm.models.skip_decoder import SkipSchedule

    length = config["data"]["seq_len"]
    made = SkipSchedule.of_speed(speed, config["model"]["num_layers"], length, keep=keep)
    return dict(
      min_layers=made.min_layers,
      max_layers=made.max_layers,
      length=length,
      start=0,
      warmup=made.warmup,
      keep=keep,
    )

  return of


def measure(trained, overrides_at) -> Measured:
  import numpy as np

  from jaxlm.training.config import run_config

  model = run_config(trained.config).model
  speed = 1.0
  if getattr(model, "schedule", None) is not None:
    positions = np.arange(trained.config["data"]["seq_len"])[None]
    speed = model.num_layers / float(np.mean(model.schedule.budget(positions)))
  return Measured({"bpb": bits_per_byte(trained), "speed": speed}, {}, {})


BPB = "bits per byte"
TUNED = {"train.steps": 300}

TABLE = Table(
  name="decoding-skipdecode",
  title="Layers skipped by position: quality over nominal speed-up",
  rows=[
    Row("full", f"{CONFIG}:skip", label="all 12 layers"),
    Row(
      "tuned", f"{CONFIG}:skip", TUNED, label="all 12 layers, trained further", begins_from="full"
    ),
    *(
      Row(
        f"{keep}{speed}",
        f"{CONFIG}:skip",
        TUNED | {"model.schedule": schedule(speed, keep)},
        label=f"{label}, {speed}x",
        begins_from="full",
      )
      for keep, label in KEEPS.items()
      for speed in SPEEDS
    ),
    Row("small", f"{CONFIG}:skip", {"model.num_layers": 4}, label="a model of 4 layers (3x)"),
  ],
  columns=[Column("nominal speed-up", "speed"), Column(BPB, "bpb", 3)],
  scales={
    "smoke": Scale(
      "12 layers of width 64, bytes of two novels, context 64, 1,000 steps of 1,024 bytes and 300 with the schedule",
      num_seeds=3,
    ),
    "small": Scale("the same at context 256, 20,000 steps of 16,384 bytes", overrides=SMALL),
  },
  measure=measure,
  claims={
    "at twice the speed it loses less than 3 % of bits per byte": lambda t: (
      1.03 * t["tuned", BPB] - t["last2", BPB]
    ),
    "it is better than early exit at every speed": lambda t: min(
      t[f"first{s}", BPB] - t[f"last{s}", BPB] for s in SPEEDS
    ),
    "and better than random layers": lambda t: min(
      t[f"random{s}", BPB] - t[f"last{s}", BPB] for s in SPEEDS
    ),
  },
  source="arXiv 2307.02628, tables 2 to 4 (numbers of tables from memory)",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
