r"""Small decoders of the tasks of the decoding wing: choices, backtracking, registers, hidden text.

  jaxlm train --config=configs/decoding/tasks.py:choices --workdir=runs/choices

Every number is ours.
"""

import ml_collections as mlc

DATA = {
  "choices": dict(kind="choices", seq_len=24, num_values=64, asked="largest"),
  "backtracking": dict(kind="backtracking", seq_len=48),
  # As many turns as a prompt of three turns and a query has: no position is new then.
  "registers": dict(kind="registers", seq_len=308, turns=4),
  "hidden": dict(
    kind="text",
    source="mini:en",
    tokenizer=dict(kind="trained_bpe", vocab_size=1024),
    seq_len=64,
  ),
}
VOCAB = {"choices": 85, "backtracking": 14, "registers": 259, "hidden": 1026}
STEPS = {"choices": 400, "backtracking": 2500, "registers": 1500, "hidden": 1500}


def get_config(task: str = "choices") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=VOCAB[task],
    d_model=64 if task in ("choices", "backtracking") else 96,
    num_layers=2 if task in ("choices", "backtracking") else 3,
    mixer=dict(kind="attention", num_heads=2),
    mlp=dict(activation="gelu_tanh"),
    norm=dict(kind="rms"),
    position=dict(kind="rope"),
    unroll=2 if task in ("choices", "backtracking") else 3,
    dtype="float32",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(batch_size=32 if task in ("choices", "backtracking") else 16, **DATA[task])
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.train = dict(steps=STEPS[task], log_every=100, save_every=500)
  c.eval = dict(num_tokens=16_384)
  return c.lock()
