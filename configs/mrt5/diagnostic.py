"""Vowel removal at the size of the paper: 30,000 steps of 128 rows (docs/specs/mrt5.md, section 9).

  jaxlm train --config=configs/mrt5/diagnostic.py --workdir=runs/diagnostic

Contextual vowels: data.task=contextual_vowel_removal and alpha 1e-3 or 1e-2; merge_ABC: 1e-2 or
1.5e-2.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="encoder_decoder",
    d_model=512,
    d_ff=1024,
    num_heads=4,
    d_kv=64,
    num_encoder_layers=3,
    num_decoder_layers=3,
    softmax1=True,
    reduction=dict(kind="delete_gate", layer=2),
    unroll=3,
  )
  c.objective = dict(kind="sequence_to_sequence", alpha=1e-3, beta=0.5, delay=10_000)
  c.data = dict(kind="diagnostic", task="vowel_removal", batch_size=128, seq_len=64, rows=16_000)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0
  )
  c.schedule = dict(kind="linear", warmup_steps=0, final_fraction=0.0)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=30_000, log_every=50, save_every=5000)
  c.eval = dict(every=5000, num_tokens=1_024_000)
  return c.lock()
