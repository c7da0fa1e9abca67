r"""A byte model that learns to spell in a minute on two CPU cores: `make demo`, and table 1 at
scale `smoke`.

  jaxlm train --config=configs/carope/demo.py --workdir=runs/demo-carope

Every number is ours; the paper's sizes are in paper_tiny.py and paper_small.py.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=256,
    d_model=128,
    num_layers=4,
    mixer=dict(kind="attention", num_heads=4, use_bias=True),
    mlp=dict(activation="gelu_tanh", use_bias=True),
    norm=dict(kind="layer"),
    position=dict(kind="carope", init="rope"),
    unroll=4,  # a loop over layers costs a CPU a third of the step
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  # 254 never occurs in UTF-8: it separates documents, and 256 ids are enough.
  c.data = dict(
    kind="text",
    source="mini:en",
    tokenizer=dict(kind="bytes", separator=254),
    seq_len=64,
    batch_size=16,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=4e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=30, final_fraction=0.1)
  c.train = dict(steps=600, log_every=50, save_every=0)
  c.eval = dict(num_tokens=65_536)
  return c.lock()
