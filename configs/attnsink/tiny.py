r"""A byte model whose rows begin with one token, for attention sinks (arXiv 2410.10781), small enough
for one core.

  jaxlm train --config=configs/attnsink/tiny.py --workdir=runs/sink
  jaxlm train --config=configs/attnsink/tiny.py --config.model.mixer.similarity=sigmoid \
    --config.model.mixer.normaliser=none --config.model.mixer.shift=-4 --workdir=runs/sigmoid

Every number is ours. The paper: 10 layers of width 768, 8 heads, 2,048 tokens, 20 thousand steps.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=257,
    d_model=64,
    num_layers=3,
    mixer=dict(kind="similarity_attention", num_heads=4),
    mlp=dict(activation="silu", gated=True, d_ff=128),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=3,
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
  c.schedule = dict(kind="constant", warmup_steps=100)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1500, log_every=50, save_every=150, keep_every=150)
  c.eval = dict(num_tokens=32_768)
  return c.lock()
