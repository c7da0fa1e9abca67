r"""A Llama 3.2 1B style decoder (1.236 B parameters) at 8k context.

  jaxlm train --config=configs/decoder/llama_1b.py --workdir=runs/llama_1b
  jaxlm preflight --config=configs/decoder/llama_1b.py --topology=v5p:4x4x4

Sizes of Llama 3.2 1B: 16 layers, 32 query and 8 key/value heads of 64, tied embedding. One sequence
of 8,192 per chip on 64 chips.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=128_256,
    d_model=2048,
    num_layers=16,
    mixer=dict(kind="attention", num_heads=32, num_kv_heads=8),
    mlp=dict(d_ff=8_192, activation="silu", gated=True),
    norm=dict(kind="rms", eps=1e-5),
    position=dict(kind="rope", theta=500_000.0),
    tie_embeddings=True,
    remat="full",
    loss_chunk=1024,
    dtype="bfloat16",
  )
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="array_record:data/fineweb_edu/{split}-*.array_record",
    tokenizer=dict(kind="bpe", path="data/llama3/tokenizer.json"),
    seq_len=8192,
    batch_size=64,
    packing="packed",
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=2_000, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=50_000, log_every=20, save_every=1_000, gather_dtype="bfloat16")
  c.eval = dict(every=1_000, num_tokens=2_097_152)
  return c.lock()
