r"""CARoPE Small (124M parameters), the paper's recipe: arXiv 2507.23083, docs/specs/carope.md
section 6.

  jaxlm train --config=configs/carope/paper_small.py --workdir=runs/carope-small
  jaxlm train --config=configs/carope/paper_small.py:rope --workdir=runs/rope-small      (rope, learned, sinusoidal)

[P] printed in the paper, [S] from the same laboratory's published training script, the rest ours.
Data: FineWeb-Edu, sample 10BT, GPT-2 BPE, joined and cut contiguously; as ArrayRecord files under
data/.
"""

import ml_collections as mlc

POSITIONS = {
  "carope": dict(kind="carope", init="rope"),
  "rope": dict(kind="rope"),
  "sinusoidal": dict(kind="sinusoidal"),
  "learned": dict(kind="learned", max_len=512),  # [P] its table ends with the training length
}


def get_config(position: str = "carope") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 1337  # [S]
  c.model = dict(
    kind="decoder",
    vocab_size=50_304,
    d_model=768,
    num_layers=12,
    # 12 layers, d_model 768 [P]; the paper prints 10 heads, which do not divide 768: 12 [S]
    mixer=dict(kind="attention", num_heads=12, use_bias=True),
    mlp=dict(activation="gelu_tanh", use_bias=True),
    norm=dict(kind="layer"),
    position=POSITIONS[position],
    dtype="bfloat16",  # [S] bfloat16 autocast, float32 parameters, no dropout
    loss_chunk=128,
    remat="minimal",
  )  # memory only: a step fits 16 chips of 16 GB
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="array_record:data/fineweb_edu/{split}-*.array_record",
    tokenizer=dict(kind="bpe"),
    seq_len=512,
    batch_size=1024,  # [P] 524,288 tokens a step
    shuffle=False,
  )  # [S]
  c.optimizer = dict(
    kind="adamw",
    learning_rate=6e-4,  # [P]
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
  )  # [S]
  c.schedule = dict(kind="cosine", warmup_steps=750, final_fraction=0.1)  # [P] to 6e-5
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(
    steps=19_000, log_every=50, save_every=1_000, gather_dtype="bfloat16"
  )  # [P] 19k steps
  c.eval = dict(every=1_000, num_tokens=2_097_152)
  return c.lock()
