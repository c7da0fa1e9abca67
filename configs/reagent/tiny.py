r"""Recall of a value by its key (jaxlm/data/planted.py), small enough for one core.

  jaxlm train --config=configs/reagent/tiny.py --workdir=runs/recall

Layers see two tokens and all tokens in turn: two plain layers of this width stay at "one of the values shown"
for two thousand steps and more, because the first must find the token before by itself. Every number is ours.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=19,
    d_model=64,
    num_layers=2,
    mixer=dict(
      kind="pattern",
      members=(
        dict(kind="attention", num_heads=4, window=2),
        dict(kind="attention", num_heads=4),
      ),
    ),
    embedding=dict(kind="learned", init_std=1.0),
    tie_embeddings=False,
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=2,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(kind="recall", num_keys=8, num_values=8, num_asked=6, batch_size=64)
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=2500, log_every=100, save_every=2500)
  c.eval = dict(num_tokens=6656)
  return c.lock()
