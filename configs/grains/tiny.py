r"""A model of two styles that cue words switch (jaxlm/data/planted.py), small enough for one core.

  jaxlm train --config=configs/grains/tiny.py --workdir=runs/styles

Every number is ours.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=49,
    d_model=64,
    num_layers=3,
    mixer=dict(kind="attention", num_heads=4),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=3,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(kind="styles", batch_size=64)
  c.optimizer = dict(
    kind="adamw", learning_rate=2e-3, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=600, log_every=50, save_every=600)
  c.eval = dict(num_tokens=3072)
  return c.lock()
