"""LaCT view synthesis: PSNR against the number of input views, on ray-cast toy scenes.

  python experiments/lact/nvs_views.py --scale smoke|small

Source: Zhang et al., "Test-Time Training Done Right", arXiv 2505.23884v1, GSO table (256 x 256, 8 new views). The toy scenes
share only the protocol: one model, more views, better pictures; a memory of constant size close to full attention.
"""

import numpy as np

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table, paper

CONFIG = "configs/lact/nvs_toy.py"
VIEWS = (4, 8, 12)
GSO = {"fast_weights": {4: 32.4, 8: 35.3, 12: 36.3}, "attention": {4: 32.6, 8: 35.6, 12: 36.6}}


def measure(trained, overrides_at) -> Measured:
  """psnr@views: dB, mean over the target views of the validation scenes. The picture is written beside the run."""
  import jax

  from jaxlm.experiments.runner import override
  from jaxlm.training.config import run_config

  numbers, shown = {}, None
  for views in VIEWS:
    cfg = run_config(override(trained.config, {"data.num_inputs": views}))
    model, values = cfg.model.build(), []
    run = jax.jit(lambda params, given, wanted, model=model: model.apply({"params": params}, given, wanted))
    for batch in cfg.data.build("validation", seed=cfg.seed, repeat=False):
      image = np.asarray(run(trained.params, *cfg.model.init_arguments(batch)))
      mse_BS = np.square(image - batch["target_images"]).mean((2, 3, 4))
      values += (-10 * np.log10(np.maximum(mse_BS, 1e-10)))[batch["loss_weights"] > 0].tolist()
      shown = (batch["target_images"][0], image[0]) if shown is None or views == VIEWS[-1] else shown
    numbers[f"psnr@{views}"] = float(np.mean(values))
  _picture(f"{trained.workdir}/views.png", *shown)
  return Measured(numbers, {}, {"psnr": [numbers[f"psnr@{v}"] for v in VIEWS]})


def _picture(path, truth, guess):
  """First row: the scene; second row: the model's."""
  from PIL import Image

  rows = [np.concatenate(list(x), -1) for x in (truth, guess)]
  grid = (255 * np.concatenate(rows, 1).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
  Image.fromarray(grid).resize((grid.shape[1] * 4, grid.shape[0] * 4), Image.Resampling.NEAREST).save(path)


TABLE = Table(
    name="lact-nvs-views", title="LaCT view synthesis: PSNR (dB) by number of input views",
    rows=[Row("fast_weights", CONFIG, label="LaCT"),
          Row("attention", CONFIG, {"model.memory": "attention"}, label="full attention")],
    columns=[Column(f"{v} views", f"psnr@{v}", 2) for v in VIEWS],
    scales={
        "smoke": Scale("2 layers, d_model 96, 16 x 16 pixels, 300 steps of 2 scenes", config=CONFIG,
                       overrides={"model.d_model": 96, "model.num_layers": 2, "model.head_dim": 32, "data.size": 16,
                                  "data.batch_size": 2, "data.num_targets": 2, "data.rows": 16, "train.steps": 300}),
        "small": Scale("4 layers, d_model 192, 32 x 32 pixels, 20,000 steps of 16 scenes", config=CONFIG,
                       overrides={"data.batch_size": 16, "train.steps": 20_000, "train.log_every": 200}),
    },
    measure=measure,
    published={(row, f"{v} views"): paper(value, "GSO, 256 x 256, 8 new views")
               for row, values in GSO.items() for v, value in values.items()},
    claims={
        "more views are better": lambda t: t["fast_weights", "12 views"] > t["fast_weights", "4 views"],
        "LaCT stays within 1 dB of full attention": lambda t: all(
            t["fast_weights", f"{v} views"] > t["attention", f"{v} views"] - 1 for v in VIEWS),
    },
    figure=Figure("psnr", "PSNR by number of input views", "4, 8, 12 input views", "PSNR (dB)"),
    source="arXiv 2505.23884v1, GSO")

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
