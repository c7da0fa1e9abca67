r"""View synthesis in miniature: ray-cast spheres and boxes, 32 x 32 pixels, patches of 4, 4 layers
of 192 (docs/specs/lact.md, 13).

  jaxlm train --config=configs/lact/nvs_toy.py --workdir=runs/lact-nvs-toy           :attention for the control

Every number is ours but the model's shape; the paper's is in nvs.py.
"""

import ml_collections as mlc


def get_config(memory: str = "fast_weights") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="lact_nvs",
    d_model=192,
    num_layers=4,
    patch=4,
    head_dim=64,
    expansion=2.0,
    memory=memory,
    dtype="float32",
  )
  c.objective = dict(kind="view_synthesis")
  c.data = dict(kind="scenes", batch_size=4, num_inputs=8, num_targets=4, size=32, rows=32)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.train = dict(steps=2000, log_every=50, save_every=0)
  c.eval = dict(num_tokens=None)
  return c.lock()
