"""LaCT view synthesis: PSNR against the number of input views, on ray-cast toy scenes.

  python experiments/lact/nvs_views.py --scale smoke|small

Source: Zhang et al., "Test-Time Training Done Right", arXiv 2505.23884v1, GSO table (256 x 256, 8
new views). The toy scenes share only the protocol: one model, more views, better pictures; a memory
of constant size close to full attention.
"""

import functools

import numpy as np

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table, paper

CONFIG = "configs/lact/nvs_toy.py"
VIEWS = (4, 8, 12)
GSO = {"fast_weights": {4: 32.4, 8: 35.3, 12: 36.3}, "attention": {4: 32.6, 8: 35.6, 12: 36.6}}


def measure(trained, overrides_at) -> Measured:
  """psnr@views: dB, mean over the target views of the validation scenes, which are the same for
  every number of input views. The picture is written beside the run."""
  import jax

  from jaxlm.experiments.runner import override
  from jaxlm.training.config import run_config

  cfg = run_config(override(trained.config, {"data.num_inputs": max(VIEWS)}))
  run = jax.jit(functools.partial(cfg.model.build().apply, {"params": trained.params}))
  values, shown = {views: [] for views in VIEWS}, {}
  for batch in cfg.data.build("validation", seed=cfg.seed, repeat=False):
    given, wanted = cfg.model.inputs(batch)
    shown.setdefault("scene", batch["target_images"][:3])
    for views in VIEWS:
      image = np.asarray(run(jax.tree.map(lambda x, n=views: x[:, :n], given), wanted))
      mse_BS = np.square(image - batch["target_images"]).mean((2, 3, 4))
      values[views] += (-10 * np.log10(np.maximum(mse_BS, 1e-10)))[
        batch["loss_weights"] > 0
      ].tolist()
      shown.setdefault(f"{views} views", image[:3])
  numbers = {f"psnr@{views}": float(np.mean(found)) for views, found in values.items()}
  _picture(f"{trained.workdir}/views.png", shown)
  return Measured(numbers, {}, {"psnr": list(numbers.values())})


def _picture(path, rows):
  """A row per number of input views under the scenes themselves; three scenes side by side."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  fig, axes = plt.subplots(len(rows), 1, figsize=(9, 3.4), dpi=110, squeeze=False)
  for (name, image_BSCYX), axis in zip(rows.items(), axes[:, 0]):
    strip = np.pad(
      image_BSCYX.clip(0, 1), ((0, 0), (0, 0), (0, 0), (0, 0), (0, 1)), constant_values=0.5
    )
    axis.imshow(
      np.concatenate([view for scene in strip for view in scene], -1).transpose(1, 2, 0),
      interpolation="nearest",
    )
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
  fig.tight_layout()
  fig.savefig(path)
  plt.close(fig)


TABLE = Table(
  name="lact-nvs-views",
  title="LaCT view synthesis: PSNR (dB) by number of input views",
  rows=[
    Row("fast_weights", CONFIG, label="LaCT"),
    Row("attention", CONFIG, {"model.memory": "attention"}, label="full attention"),
  ],
  columns=[Column(f"{v} views", f"psnr@{v}", 2) for v in VIEWS],
  scales={
    "smoke": Scale(
      "2 layers, d_model 64, scenes of 2 large shapes in 16 x 16 pixels, 1,000 steps of 8 scenes with 8 + 4 views",
      config=CONFIG,
      overrides={
        "model.d_model": 64,
        "model.num_layers": 2,
        "model.head_dim": 32,
        "data.size": 16,
        "data.num_shapes": 2,
        "data.shape_scale": 1.6,
        "data.batch_size": 8,
        "data.rows": 64,
        "optimizer": dict(kind="muon", learning_rate=0.01, weight_decay=0.0, clip_norm=1.0),
        "train.steps": 1000,
        "train.save_every": 200,
      },
    ),
    "small": Scale(
      "4 layers, d_model 192, 32 x 32 pixels, 20,000 steps of 16 scenes",
      config=CONFIG,
      overrides={"data.batch_size": 16, "train.steps": 20_000, "train.log_every": 200},
    ),
  },
  measure=measure,
  published={
    (row, f"{v} views"): paper(value, "GSO, 256 x 256, 8 new views")
    for row, values in GSO.items()
    for v, value in values.items()
  },
  claims={
    "more views are better": lambda t: t["fast_weights", "12 views"] - t["fast_weights", "4 views"],
    "LaCT stays within 1 dB of full attention": lambda t: min(
      t["fast_weights", f"{v} views"] - (t["attention", f"{v} views"] - 1) for v in VIEWS
    ),
  },
  figure=Figure(
    "psnr",
    "PSNR by number of input views",
    "input views",
    "PSNR (dB)",
    ticks=[str(views) for views in VIEWS],
  ),
  source="arXiv 2505.23884v1, GSO",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
