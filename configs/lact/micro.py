r"""LaCT in miniature, on questions whose only answers are in the row's own past: one layer of 64,
window 32, chunk 32.

  jaxlm train --config=configs/lact/micro.py --workdir=runs/lact-micro
  jaxlm train --config=configs/lact/micro.py:gla --workdir=runs/gla-micro       (any row of experiments/lact/figure5.py)

Every number is ours; the paper's sizes are in lm_760m.py and lm_3b.py. Half a minute to a minute of
one CPU core.
"""

import ml_collections as mlc

WINDOW = dict(kind="attention", num_heads=2, window=32)


def lact(**update):
  # rate 0.1: one step of 32 tokens has to move the weights as 2,048 tokens at 0.001 do. Rows are
  # one document each, for which 'shared' and 'isolated' are the same and 'shared' is the shorter
  # program.
  return dict(
    kind="lact",
    num_heads=2,
    window=32,
    fast=dict(num_heads=2, chunk=32, base_rate=0.1, documents="shared", update=dict(**update)),
  )


MIXERS = {
  "swa": WINDOW,
  "full": dict(kind="attention", num_heads=2),
  "gla": dict(kind="hybrid", members=[WINDOW, dict(kind="gla", num_heads=2, expand_k=1.0)]),
  "delta_rule": dict(kind="hybrid", members=[WINDOW, dict(kind="delta_rule", num_heads=2)]),
  "gated_delta_rule": dict(
    kind="hybrid", members=[WINDOW, dict(kind="gated_delta_rule", num_heads=2)]
  ),
  "lact_gd": lact(momentum=False),
  "lact_momentum": lact(momentum=True),
  "lact_muon": lact(momentum=True, muon="language"),
}


def get_config(mixer: str = "lact_muon") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=256,
    d_model=64,
    num_layers=1,
    mixer=MIXERS[mixer],
    mlp=dict(d_ff=128, activation="silu", gated=True),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    tie_embeddings=False,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(kind="pairs", seq_len=256, batch_size=8, num_keys=15, rows=256)
  c.optimizer = dict(kind="muon", learning_rate=0.02, weight_decay=0.0, clip_norm=1.0)
  c.schedule = dict(kind="cosine", warmup_steps=40, final_fraction=0.1)
  c.train = dict(steps=400, log_every=20, save_every=0)
  c.eval = dict(num_tokens=16_384)
  return c.lock()
