r"""A BPE model of two novels with ReLU neurons, for the loss by kind of token (arXiv 2510.08203).

  jaxlm train --config=configs/functok/tiny.py --workdir=runs/functok

Every number is ours.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=1000,
    d_model=64,
    num_layers=3,
    mixer=dict(kind="attention", num_heads=4),
    mlp=dict(activation="relu"),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=3,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="mini:en",
    tokenizer=dict(kind="trained_bpe", vocab_size=1000),
    seq_len=64,
    batch_size=32,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1600, log_every=50, save_every=100, keep_every=100)
  c.eval = dict(num_tokens=32_768)
  return c.lock()
