r"""A lexinvariant model of an embedded novel's bytes, small enough for a laptop's CPU, and its
standard twin.

  jaxlm train --config=configs/lexinvariant/tiny.py --workdir=runs/lex
  jaxlm train --config=configs/lexinvariant/tiny.py --config.model.embedding=learned
  --workdir=runs/standard

Every number is ours; the paper's model is paper_chars.py.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=257,
    d_model=128,
    num_layers=4,
    mixer=dict(kind="attention", num_heads=4),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="t5"),
    embedding=dict(kind="lexinvariant", learned_scale=True),
    unroll=4,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="mini:moby_dick",
    tokenizer=dict(kind="bytes"),
    seq_len=256,
    batch_size=16,
    sequence_seeds=True,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=2e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=3000, log_every=50, save_every=1000)
  c.eval = dict(every=1000, num_tokens=32_768, lengths=(256,))
  return c.lock()
