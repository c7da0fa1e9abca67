r"""The Bigram-Backcopy task (arXiv 2410.13835) with one head a layer, small enough for one core.

  jaxlm train --config=configs/activedormant/tiny.py --workdir=runs/backcopy

Every number is ours. The paper's repository: width 256, rows of 256, batch 512, 10 thousand steps at
3e-4.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=31,
    d_model=64,
    num_layers=3,
    mixer=dict(kind="similarity_attention", num_heads=1),
    mlp=dict(activation="relu", d_ff=256),
    norm=dict(kind="rms"),
    position=dict(kind="learned", max_len=256),
    unroll=3,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(kind="backcopy", seq_len=64, batch_size=32)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=1e-4, clip_norm=1.0
  )
  c.schedule = dict(kind="constant", warmup_steps=50)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=2000, log_every=50, save_every=200, keep_every=200)
  c.eval = dict(num_tokens=16_384)
  return c.lock()
