r"""A byte model in which attention can be replaced (arXiv 2510.11602), small enough for one core.

  jaxlm train --config=configs/deconattn/tiny.py --workdir=runs/standard
  jaxlm train --config=configs/deconattn/tiny.py --config.model.mixer=channel_mlp --workdir=runs/mlp

The width is a multiple of 3, so that a channel_mlp has attention's parameters. Every number is ours.
The paper: Qwen2.5's blocks, 70 to 500 million parameters, rows of 2,048 tokens.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=257,
    d_model=48,
    num_layers=4,
    mixer=dict(kind="attention", num_heads=4),
    mlp=dict(activation="silu", gated=True, d_ff=128),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=4,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="mini:en",
    tokenizer=dict(kind="bytes"),
    seq_len=64,
    batch_size=32,
    row_start=True,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1500, log_every=50, save_every=1500)
  c.eval = dict(num_tokens=32_768)
  return c.lock()
