r"""The 150M lexinvariant model at character scale, as far as the paper is known
(docs/specs/lexinvariant.md, section 3).

  jaxlm train --config=configs/lexinvariant/paper_chars.py --workdir=runs/lex-150m

Steps are the abstract's; 12 layers and 8 heads a third party's account of the paper; width, context
and batch are from memory; the optimiser and its rates are ours. Bytes stand for its characters, and
an embedded novel for the Pile: set data.source.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=257,
    d_model=1024,
    num_layers=12,
    mixer=dict(kind="attention", num_heads=8),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="t5"),
    embedding=dict(kind="lexinvariant", learned_scale=True),
    remat="minimal",
    dtype="bfloat16",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="mini:moby_dick",
    tokenizer=dict(kind="bytes"),
    seq_len=512,
    batch_size=64,
    sequence_seeds=True,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=6e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=5000, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=250_000, log_every=100, save_every=5000)
  c.eval = dict(every=5000, num_tokens=262_144, lengths=(512,))
  return c.lock()
