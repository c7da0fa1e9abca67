r"""LaCT on an embedded novel's bytes, or on your own text, at the size of a laptop: 2 layers of 128, window 64, chunk 64.

  jaxlm train --config=configs/lact/tiny.py --workdir=runs/lact-tiny
  jaxlm train --config=configs/lact/tiny.py:window --workdir=runs/window      the same without the fast weights
  jaxlm train --config=configs/lact/tiny.py --config.data.source='text:books/*.jsonl#text' --workdir=runs/mine

Validation loss 1.91 nats per byte after the 500 steps (one run); some minutes of two busy CPU cores.
Every number is ours; the paper's sizes are in lm_760m.py and lm_3b.py, its questions in miniature in micro.py.
"""

import ml_collections as mlc

WINDOW = dict(kind="attention", num_heads=2, window=64)
# base_rate 0.1, 'shared': as in micro.py.
LACT = dict(
  kind="lact",
  num_heads=2,
  window=64,
  fast=dict(
    num_heads=2,
    chunk=64,
    base_rate=0.1,
    documents="shared",
    update=dict(momentum=True, muon="language"),
  ),
)
MIXERS = {"lact": LACT, "window": WINDOW}


def get_config(mixer: str = "lact") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=257,
    d_model=128,
    num_layers=2,
    mixer=MIXERS[mixer],
    mlp=dict(d_ff=256, activation="silu", gated=True),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=2,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text", source="mini:moby_dick", tokenizer=dict(kind="bytes"), seq_len=256, batch_size=8
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=500, log_every=20, save_every=250)
  c.eval = dict(every=250, num_tokens=32_768, lengths=(256, 512))
  return c.lock()
