r"""Star graphs with insertions, and the three baselines of table 1 (docs/specs/ilm.md, sections 7
and 8).

  jaxlm train --config=configs/ilm/star_easy.py --workdir=runs/ilm-star-easy                     a small model, CPU
  jaxlm train --config=configs/ilm/star_easy.py:insertion_transformer --workdir=runs/it-star     also: causal,
                                                                                                 masked_diffusion
Model: the release's xtiny2 width and depth halved, ours; data, optimiser and objective are the
paper's.
Medium and hard: --config.data.family=medium --config.data.seq_len=44 (vocabulary 28 as here; hard
136 and 64).
"""

import ml_collections as mlc

VOCAB = 28  # 20 nodes, then cls, bos, eos, unk, pad, mask and two separators


def get_config(form: str = "insertion") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 1
  mlp = dict(d_ff=768, activation="relu", use_bias=True)
  network = dict(
    vocab_size=VOCAB,
    d_model=192,
    num_layers=4,
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
      d_model=192,
      num_layers=4,
      num_heads=3,
      d_cond=96,
      mlp=mlp,
      embedding=dict(kind="learned", init_std=1.0),
      dtype="float32",
    )
    c.objective = dict(kind="masked_diffusion")
  elif form == "causal":
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
  c.data = dict(kind="star_graphs", family="easy", form=form, batch_size=64, seq_len=36)
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="constant", warmup_steps=500)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=50_000, log_every=100, save_every=5_000, ema_decay=0.9999)
  c.eval = dict(every=5_000, num_tokens=None)
  return c.lock()
