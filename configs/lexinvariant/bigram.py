r"""A lexinvariant model of one bigram source over five symbols, whose best possible predictor is
known.

  jaxlm train --config=configs/lexinvariant/bigram.py --workdir=runs/bigram

Every text is under a cipher of its own, so that the model has to find out what stands for what; so
has the exact mixture over all 120 ciphers that experiments/lexinvariant/bayes.py compares it with.
Every number is ours.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=5,
    d_model=64,
    num_layers=3,
    mixer=dict(kind="attention", num_heads=4),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="t5"),
    embedding=dict(kind="lexinvariant", learned_scale=True),
    unroll=3,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="bigram",
    num_symbols=5,
    concentration=0.2,
    source_seed=2,
    seq_len=64,
    batch_size=16,
    rows=512,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=6400, log_every=100, save_every=400, keep_every=400)
  c.eval = dict(num_tokens=32_768)
  return c.lock()
