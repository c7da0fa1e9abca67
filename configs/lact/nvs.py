r"""LaCT view synthesis, 24 layers of 768 (312 M): arXiv 2505.23884, docs/specs/lact.md section 8.

  jaxlm train --config=configs/lact/nvs.py --workdir=runs/lact-nvs

[P] printed in the paper, [C] from the released code. Data: folders with opencv_cameras.json under
data/objaverse.

Departures from docs/specs/lact.md, section 8: input and target views are disjoint (the code draws
15, so that one is in both); gradients are clipped from step 0 (there from step 1,000), and steps
whose norm is above 4 or not finite are not skipped; no LPIPS unless objective.perceptual names a
distance.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="lact_nvs",
    d_model=768,
    num_layers=24,
    patch=8,
    head_dim=64,
    expansion=2.0,
    muon_steps=5,
    base_rate=0.01,
    remat=True,
    dtype="bfloat16",
  )  # [C]
  c.objective = dict(
    kind="view_synthesis"
  )  # [C]; its LPIPS, weight 1 after 5,000 steps, is left out
  c.data = dict(
    kind="scenes",
    source="data/objaverse/{split}.txt",
    batch_size=512,
    num_inputs=8,
    num_targets=8,
    size=256,
  )  # [P] 8 + 8 views of 256 x 256; 64 GPUs x 8 [C]
  c.optimizer = dict(
    kind="adamw", learning_rate=4e-4, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0
  )  # [P], [C]
  c.schedule = dict(kind="cosine", warmup_steps=4000, final_fraction=0.0)  # [C]
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=80_000, log_every=50, save_every=2_000)  # [C]
  c.eval = dict(every=4_000, num_tokens=67_108_864)
  return c.lock()
