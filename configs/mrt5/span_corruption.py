"""Continued pretraining's task from scratch: span corruption over bytes of 15 languages, on a
laptop's CPU.

  jaxlm train --config=configs/mrt5/span_corruption.py --workdir=runs/spans

The text comes with jaxlm: two English novels and the Universal Declaration of Human Rights. The
paper's setting is byt5_small.py.
"""

import ml_collections as mlc

LANGUAGES = (
  "fra",
  "spa",
  "deu_1996",
  "ell_monotonic",
  "bul",
  "rus",
  "tur",
  "arb",
  "vie",
  "tha",
  "cmn_hans",
  "hin",
  "swh",
  "urd",
)


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="encoder_decoder",
    d_model=128,
    d_ff=256,
    num_heads=4,
    d_kv=32,
    num_encoder_layers=5,
    num_decoder_layers=2,
    softmax1=True,
    reduction=dict(kind="delete_gate", layer=2),
    unroll=3,
  )
  # Gains for hundreds of steps: with the paper's k_p of 0.5 Adam sweeps the gate past the target
  # before alpha has fallen.
  c.objective = dict(
    kind="sequence_to_sequence", delay=100, controller=dict(target=0.5, k_p=0.02, k_i=1e-4)
  )
  c.data = dict(
    kind="span_corruption",
    sources=("mini:en", *(f"mini:udhr/{code}" for code in LANGUAGES)),
    seq_len=128,
    batch_size=8,
    mean_span=6.0,
    exponent=0.3,
    rows=480,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=900, log_every=20, save_every=300)
  c.eval = dict(every=0, num_tokens=61_440)
  return c.lock()
