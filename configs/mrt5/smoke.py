"""Vowel removal on a laptop's CPU: a delete gate at d_model 128 that learns to delete the vowels it
will not need.

  jaxlm train --config=configs/mrt5/smoke.py --workdir=runs/vowels
  jaxlm train --config=configs/mrt5/smoke.py --config.objective.controller.target=0.3
  --workdir=runs/vowels-30

The paper's setting (d_model 512, 30,000 steps of 128) is diagnostic.py.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="encoder_decoder",
    d_model=128,
    d_ff=256,
    num_heads=4,
    d_kv=32,
    num_encoder_layers=3,
    num_decoder_layers=2,
    softmax1=True,
    reduction=dict(kind="delete_gate", layer=1),
    unroll=3,
  )
  # The copy is learnt without a controller. k_i is 100 times the paper's, which is meant for 5,000
  # steps of pretraining.
  c.objective = dict(
    kind="sequence_to_sequence",
    beta=0.0,
    delay=1500,
    controller=dict(target=0.18, k_p=0.5, k_i=1e-3),
  )
  c.data = dict(kind="diagnostic", task="vowel_removal", batch_size=32, seq_len=32, rows=1024)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=3000, log_every=50, save_every=1000)
  c.eval = dict(every=1000, num_tokens=8192)
  return c.lock()
