r"""Star graphs, hard: degree 5, arms of 6 to 12 nodes through the hub, 56 nodes (docs/specs/ilm.md,
sections 7.1 and 8).

  jaxlm train --config=configs/ilm/star_hard.py --workdir=runs/ilm-star-hard        also :insertion_transformer, :causal and
                                                                               :masked_diffusion
Model: the release's xtiny2 (384 x 4, 6 heads, ffn 6 d), the spec's tier 1, sized for one GPU; the
paper's own size is configs/ilm/star_paper.py. Data, optimiser and objective are the paper's.
"""

import ml_collections as mlc

VOCAB = 64  # 56 nodes, then cls, bos, eos, unk, pad, mask and two separators


def get_config(form: str = "insertion") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 1
  mlp = dict(d_ff=2304, activation="relu", use_bias=True)
  network = dict(
    vocab_size=VOCAB,
    d_model=384,
    num_layers=4,
    mlp=mlp,
    norm=dict(kind="layer"),
    position=dict(kind="rope"),
    embedding=dict(kind="learned", init_std=1.0),
    tie_embeddings=False,
    final_norm=False,
    dtype="bfloat16",
  )
  if form == "masked_diffusion":
    c.model = dict(
      kind="masked_diffusion",
      vocab_size=VOCAB,
      d_model=384,
      num_layers=4,
      num_heads=6,
      d_cond=96,
      mlp=mlp,
      embedding=dict(kind="learned", init_std=1.0),
      dtype="bfloat16",
    )
    c.objective = dict(kind="masked_diffusion")
  elif form == "causal":
    c.model = dict(kind="decoder", mixer=dict(kind="attention", num_heads=6), **network)
    c.objective = dict(kind="next_token")
  else:
    c.model = dict(
      kind="insertion",
      mixer=dict(kind="attention", num_heads=6, causal=False),
      stop_head=form == "insertion",
      **network,
    )
    c.objective = (
      dict(kind="insertion") if form == "insertion" else dict(kind="insertion_transformer")
    )
  c.data = dict(kind="star_graphs", family="hard", form=form, batch_size=64, seq_len=136)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="constant", warmup_steps=500)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=50_000, log_every=100, save_every=5_000, ema_decay=0.9999)
  c.eval = dict(every=5_000, num_tokens=None)
  return c.lock()
