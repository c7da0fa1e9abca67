r"""Byte models of one text in several sizes and kinds, for the tables of the decoding wing.

  jaxlm train --config=configs/decoding/bytes.py:target --workdir=runs/decoding/target

target: 4 layers of width 128. draft: one layer of width 64, about a twelfth of the target's cost.
skip: 12 layers of width 64 with a skip schedule. blocks: a bidirectional network of block diffusion
that conditions on no noise level. Every number is ours.
"""

import ml_collections as mlc

SIZES = {"target": (128, 4, 4), "draft": (64, 1, 2), "skip": (64, 12, 2), "blocks": (96, 3, 3)}


def get_config(kind: str = "target") -> mlc.ConfigDict:
  d_model, num_layers, num_heads = SIZES[kind]
  c = mlc.ConfigDict()
  c.seed = 0
  if kind == "blocks":
    c.model = dict(
      kind="masked_diffusion",
      vocab_size=256,
      d_model=d_model,
      num_layers=num_layers,
      num_heads=num_heads,
      d_cond=16,
      residual="corrected",
      mlp=dict(activation="gelu_tanh", use_bias=True),
      dtype="float32",
    )
    # 255 never occurs in UTF-8.
    c.objective = dict(kind="block_diffusion", mask=255, block_lens=(16,))
  else:
    c.model = dict(
      kind="skip_decoder" if kind == "skip" else "decoder",
      vocab_size=256,
      d_model=d_model,
      num_layers=num_layers,
      mixer=dict(kind="attention", num_heads=num_heads),
      mlp=dict(activation="gelu_tanh"),
      norm=dict(kind="rms"),
      position=dict(kind="rope"),
      unroll=num_layers if kind != "skip" else 1,
      dtype="float32",
    )
    c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="mini:en",
    tokenizer=dict(kind="bytes", separator=254),
    seq_len=64,
    batch_size=16,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50, final_fraction=0.1)
  c.train = dict(steps=1000, log_every=100, save_every=500)
  c.eval = dict(num_tokens=32_768)
  return c.lock()
