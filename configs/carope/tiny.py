r"""CARoPE on an embedded novel, small enough to read its curve within minutes on a laptop's CPU.

  jaxlm train --config=configs/carope/tiny.py --workdir=runs/tiny
  jaxlm train --config=configs/carope/tiny.py --config.model.position=rope --workdir=runs/tiny-rope

Every number is ours; the paper's Tiny and Small are paper_tiny.py and paper_small.py.
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
    mixer=dict(kind="attention", num_heads=2, use_bias=True),  # heads of 64, as in the paper
    mlp=dict(activation="gelu_tanh", use_bias=True),
    norm=dict(kind="layer"),
    position=dict(kind="carope", init="rope"),
    unroll=4,  # a loop over layers costs a CPU a third of the step
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text", source="mini:moby_dick", tokenizer=dict(kind="bytes"), seq_len=128, batch_size=16
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1000, log_every=20, save_every=250)
  c.eval = dict(every=250, num_tokens=32_768, lengths=(128, 256))
  return c.lock()
