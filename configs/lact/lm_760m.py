r"""LaCT 760M language model: arXiv 2505.23884, docs/specs/lact.md sections 4 and 5.

  jaxlm train --config=configs/lact/lm_760m.py --workdir=runs/lact-760m            Muon; :momentum, :gd, or a baseline
  jaxlm preflight --config=configs/lact/lm_760m.py --topology=v5p:4x4x2

[P] printed in the paper, [C] from the released code, [M] from memory, the rest ours.
Data: Long-Data-Collections [P], tokenized with a Mistral vocabulary of 32,000, as ArrayRecord files
under data/.
"""

import ml_collections as mlc

WINDOW = dict(kind="attention", num_heads=24, window=2048)


def lact(**update):
  return dict(
    kind="lact",
    num_heads=24,
    window=2048,  # [C]
    fast=dict(num_heads=4, chunk=2048, rank=32, init_gain=0.5, update=dict(**update)),
  )  # [C]


MIXERS = {
  "muon": lact(momentum=True, muon="language"),
  "momentum": lact(momentum=True),
  "gd": lact(momentum=False),
  "swa": WINDOW,
  "full": dict(kind="attention", num_heads=24),
  "gla": dict(kind="hybrid", members=[WINDOW, dict(kind="gla", num_heads=4, expand_k=1.0)]),
  "delta_rule": dict(
    kind="hybrid", members=[WINDOW, dict(kind="delta_rule", num_heads=12)]
  ),  # heads of 128 [P]
}


def get_config(mixer: str = "muon") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="decoder",
    vocab_size=32_000,
    d_model=1536,
    num_layers=24,
    mixer=MIXERS[mixer],  # [C]
    mlp=dict(d_ff=4096, activation="silu", gated=True),
    norm=dict(kind="rms", eps=1e-6),  # [C]
    position=dict(kind="rope", theta=1_000_000.0),  # [P] for every model with softmax attention
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
    batch_size=32,
  )  # [P] 1 M tokens a step
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
  c.train = dict(steps=40_960, log_every=20, save_every=1_000, gather_dtype="bfloat16")  # [P]
  c.eval = dict(every=1_000, num_tokens=4_194_304)
  return c.lock()
