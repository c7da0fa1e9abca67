"""MrT5 at the size of ByT5-small: span corruption over 15 languages, 5,000 steps of 1,024 rows of
1,024 bytes.

  for l in fr es de el bg ru tr ar vi th zh hi ur; do jaxlm data prepare ml-$l; done; jaxlm data
  prepare en-medium jaxlm train --config=configs/mrt5/byt5_small.py --workdir=runs/mrt5-small
  jaxlm preflight --config=configs/mrt5/byt5_small.py --topology=v5e:4x4

The paper continues ByT5's own checkpoint on mC4; neither is in a package, so this starts from
scratch on what is (Swahili has only the declaration of human rights, and is for evaluation). Steps,
batch, learning rate, gate, controller: docs/specs/mrt5.md, section 9.
"""

import ml_collections as mlc

LANGUAGES = ("fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "ur")


def get_config(target: str = "0.5") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 42
  c.model = dict(
    kind="encoder_decoder",
    d_model=1472,
    d_ff=3584,
    num_heads=6,
    d_kv=64,
    num_encoder_layers=12,
    num_decoder_layers=4,
    softmax1=True,
    reduction=dict(kind="delete_gate", layer=3, scale=-30.0),
    remat=True,
    dtype="bfloat16",
  )
  c.objective = dict(
    kind="sequence_to_sequence", controller=dict(target=float(target), k_p=0.5, k_i=1e-5)
  )
  c.data = dict(
    kind="span_corruption",
    sources=("prepared:en-medium", *(f"prepared:ml-{code}" for code in LANGUAGES)),
    seq_len=1024,
    batch_size=1024,
    noise_density=0.15,
    mean_span=20.0,
    exponent=0.0,
    rows=16_000,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0
  )
  c.schedule = dict(kind="linear", warmup_steps=0, final_fraction=0.0)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=5000, log_every=50, save_every=500)
  c.eval = dict(every=500, num_tokens=1_024_000)
  return c.lock()
