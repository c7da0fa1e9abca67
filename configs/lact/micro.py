r"""LaCT in miniature, on text whose only regularity is its own past: 2 layers of 64, window 16, chunk 16.

  jaxlm train --config=configs/lact/micro.py --workdir=runs/lact-micro
  jaxlm train --config=configs/lact/micro.py:gla --workdir=runs/gla-micro       (any row of experiments/lact/figure5.py)

Every number is ours; the paper's sizes are in lm_760m.py and lm_3b.py.
"""

import ml_collections as mlc

WINDOW = dict(kind="attention", num_heads=2, window=16)


def lact(**update):
  # rate 0.1: one step of 16 tokens has to move the weights as 2,048 tokens at 0.001 do
  return dict(kind="lact", num_heads=2, window=16,
              fast=dict(num_heads=2, chunk=16, base_rate=0.1, update=dict(**update)))


MIXERS = {
    "swa": WINDOW,
    "full": dict(kind="attention", num_heads=2),
    "gla": dict(kind="hybrid", members=[WINDOW, dict(kind="gla", num_heads=2, expand_k=1.0)]),
    "delta_rule": dict(kind="hybrid", members=[WINDOW, dict(kind="delta_rule", num_heads=2)]),
    "gated_delta_rule": dict(kind="hybrid", members=[WINDOW, dict(kind="gated_delta_rule", num_heads=2)]),
    "lact_gd": lact(momentum=False),
    "lact_momentum": lact(momentum=True),
    "lact_muon": lact(momentum=True, muon="language"),
}


def get_config(mixer: str = "lact_muon") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
      kind="decoder", vocab_size=256, d_model=64, num_layers=2, mixer=MIXERS[mixer],
      mlp=dict(d_ff=128, activation="silu", gated=True), norm=dict(kind="rms"),
      position=dict(kind="rope"), tie_embeddings=False, unroll=2, dtype="float32")
  c.objective = dict(kind="next_token")
  c.data = dict(kind="repeated_words", seq_len=256, batch_size=8, num_words=32, word_chars=3, rows=128)
  c.optimizer = dict(kind="adamw", learning_rate=5e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule = dict(kind="cosine", warmup_steps=40, final_fraction=0.1)
  c.train = dict(steps=4000, log_every=200, save_every=0)
  c.eval = dict(num_tokens=16_384)
  return c.lock()
