r"""LaCT 3B language model: arXiv 2505.23884, docs/specs/lact.md sections 4 and 5.

  jaxlm train --config=configs/lact/lm_3b.py --workdir=runs/lact-3b                Muon; :momentum
  jaxlm preflight --config=configs/lact/lm_3b.py --topology=v5p:4x4x4

[P] printed in the paper, [C] from the released code, [M] from memory. The released momentum file
says 25 heads and 24 layers, which cannot be (3072 / 25 is not whole): heads and layers are
exchanged back here. Chunk and window are the paper's 4096; the released files say 2048.
"""

import ml_collections as mlc


def get_config(mixer: str = "muon") -> mlc.ConfigDict:
  if mixer not in ("muon", "momentum"):
    raise ValueError(f"lm_3b has no mixer {mixer!r}; use muon or momentum")
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=32_000,
    d_model=3072,
    num_layers=25,  # [P]
    mixer=dict(
      kind="lact",
      num_heads=24,
      window=4096,  # [P]
      fast=dict(
        num_heads=4,
        chunk=4096,
        rank=32,
        init_gain=0.5,  # [P], [C]
        update=dict(momentum=True, muon="language" if mixer == "muon" else None),
      ),
    ),
    mlp=dict(d_ff=8192, activation="silu", gated=True),
    norm=dict(kind="rms", eps=1e-6),  # [C]
    position=dict(kind="rope", theta=1_000_000.0),  # [P]
    tie_embeddings=False,
    remat="full",
    loss_chunk=8192,
    dtype="bfloat16",
  )  # [C]
  c.objective = dict(kind="next_token")
  c.data = dict(
    kind="text",
    source="array_record:data/long_data/{split}-*.array_record",
    tokenizer=dict(kind="bpe", path="data/mistral/tokenizer.json"),
    seq_len=32_768,
    batch_size=64,
  )  # [P] 2 M tokens a step
  c.optimizer = dict(
    kind="adamw",
    learning_rate=1e-3,
    eps=1e-15,  # [P], [C]
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
  )  # [M], [C]
  c.schedule = dict(kind="cosine", warmup_steps=1024, final_fraction=0.1)  # [C]
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=30_000, log_every=20, save_every=1_000, gather_dtype="bfloat16")  # [P]
  c.eval = dict(every=1_000, num_tokens=4_194_304)
  return c.lock()
