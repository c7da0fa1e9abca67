r"""GPT-2 small (124.5 M parameters) with 524,288 tokens a step: 16 chips, or one GPU with
accumulation.

  jaxlm train --config=configs/decoder/gpt2_small.py --workdir=runs/gpt2            (:1024 for its full context)
  one GPU: --config.train.accumulation=16

Sizes from Radford et al. 2019; the vocabulary padded to 50,304.
"""

import ml_collections as mlc


def get_config(seq_len: str = "512") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=50_304,
    d_model=768,
    num_layers=12,
    mixer=dict(kind="attention", num_heads=12, use_bias=True),
    mlp=dict(d_ff=3072, activation="gelu_tanh", use_bias=True),
    norm=dict(kind="layer"),
    position=dict(kind="learned", max_len=1024),
    tie_embeddings=True,
    remat="full",
    loss_chunk=64,
    dtype="bfloat16",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="array_record:data/fineweb_edu/{split}-*.array_record",
    tokenizer=dict(kind="bpe"),
    seq_len=int(seq_len),
    batch_size=524_288 // int(seq_len),
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=6e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=700, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=19_000, log_every=50, save_every=1_000, gather_dtype="bfloat16")
  c.eval = dict(every=1_000, num_tokens=2_097_152)
  return c.lock()
