r"""Star graphs with the paper's model and recipe (docs/specs/ilm.md, sections 3 and 8): 12 layers,
d_model 768, 12 heads.

  jaxlm train --config=configs/ilm/star_paper.py:hard --workdir=runs/star-hard       ILM on easy, medium or hard
  jaxlm train --config=configs/ilm/star_paper.py:hard_causal --workdir=runs/arm-hard         also: _masked_diffusion,
                                                                                             _insertion_transformer
Layers start as copies of one and at PyTorch's defaults, as the release's; masked diffusion, of
which the spec says neither, keeps our own start, with its modulation at zero. Not here: the
release's dropout of 0.1, which these models do not have.
"""

import ml_collections as mlc

NODES = {"easy": (20, 36), "medium": (20, 44), "hard": (56, 136)}  # and places of a sequence


def get_config(argument: str = "easy") -> mlc.ConfigDict:
  family, _, form = argument.partition("_")
  form, (nodes, seq_len) = form or "insertion", NODES[family]
  vocab_size = nodes + 8  # and special tokens
  c = mlc.ConfigDict()
  c.seed = 1
  mlp = dict(d_ff=3072, activation="relu", use_bias=True)
  network = dict(
    vocab_size=vocab_size,
    d_model=768,
    num_layers=12,
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
      vocab_size=vocab_size,
      d_model=768,
      num_layers=12,
      num_heads=12,
      d_cond=128,
      mlp=mlp,
      embedding=dict(kind="learned", init_std=1.0),
      dtype="bfloat16",
    )
    c.objective = dict(kind="masked_diffusion")
  elif form == "causal":
    c.model = dict(kind="decoder", mixer=dict(kind="attention", num_heads=12), **network)
    c.objective = dict(kind="next_token")
    if family == "easy":
      c.model.dtype = "float32"  # as the release runs it
  else:
    c.model = dict(
      kind="insertion",
      mixer=dict(kind="attention", num_heads=12, causal=False),
      stop_head=form == "insertion",
      **network,
    )
    c.objective = (
      dict(kind="insertion") if form == "insertion" else dict(kind="insertion_transformer")
    )
  c.data = dict(kind="star_graphs", family=family, form=form, batch_size=64, seq_len=seq_len)
  rate, steps = {
    "insertion": (1e-4, 50_000),
    "insertion_transformer": (1e-4, 50_000),
    "masked_diffusion": (1e-4, 100_000),
    "causal": (1e-5, 50_000 if family == "easy" else 100_000),
  }[form]
  c.optimizer = dict(
    kind="adamw", learning_rate=rate, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0
  )
  # The release's shell scripts have no warm-up for ILM; its files, and the other models, 500 steps.
  c.schedule = dict(kind="constant", warmup_steps=0 if form == "insertion" else 500)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(
    steps=steps,
    log_every=100,
    save_every=5_000,
    ema_decay=0.9999,
    init="own" if form == "masked_diffusion" else "torch_identical_layers",
  )
  c.eval = dict(every=5_000, num_tokens=None)
  return c.lock()
