r"""Characters of prose or code, lexinvariant or standard, small enough for a laptop's CPU.

  jaxlm train --config=configs/lexinvariant/chars.py --workdir=runs/lex-chars
  jaxlm train --config=configs/lexinvariant/chars.py --config.model.embedding.random_prob=0.0
  --workdir=runs/standard-chars

The vocabulary is 128 characters and two specials, as we remember the paper's; every other number is
ours. The tables of experiments/lexinvariant start from this file.
"""

import string

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=130,
    d_model=64,
    num_layers=2,
    mixer=dict(kind="attention", num_heads=2),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="t5"),
    embedding=dict(kind="lexinvariant", learned_scale=True),
    unroll=2,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  # Letters, digits and the marks of the reasoning tasks have an id even where the text never uses
  # them.
  c.data = dict(
    kind="text",
    source="mini:en",
    seq_len=128,
    batch_size=16,
    sequence_seeds=True,
    tokenizer=dict(
      kind="chars", vocab_size=130, always=string.ascii_letters + string.digits + ">; \n"
    ),
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=60, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1500, log_every=50, save_every=500)
  c.eval = dict(num_tokens=65_536)
  return c.lock()
