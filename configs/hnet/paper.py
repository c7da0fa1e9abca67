r"""H-Net as released, and the baselines of its Table 2, Large and XL (arXiv 2507.07955;
docs/specs/hnet.md sections 2, 17).

  jaxlm train --config=configs/hnet/paper.py --workdir=runs/hnet                   (1stage_L)
  jaxlm train --config=configs/hnet/paper.py:2stage_XL --workdir=runs/hnet2

[R] read in the released code and configs, [P] printed in the paper, [D] computed from its formulas,
[mem] from memory, the rest ours. Data: FineWeb-Edu, 100B-token subset [P] (about 460e9 bytes [D]);
joined and cut contiguously is ours, the release has no data pipeline.
"""

import ml_collections as mlc

# name: layout [R], widths [R], d_ff [R], rotary channels [R], windows (keys before the query + 1)
# [R], scale
RELEASED = {
  "1stage_L": ("m4 [T22] m4", (1024, 1536), (0, 4096), (32, 48), (1024, None)),
  "1stage_XL": ("m4 [T24] m4", (1024, 2048), (0, 5504), (32, 64), (1024, None)),
  "2stage_L": (
    "m4 [T1m4 [T26] m4T1] m4",
    (1024, 1024, 1536),
    (0, 2816, 4096),
    (32, 32, 48),
    (1024, 1024, None),
  ),
  "2stage_XL": (
    "m4 [T1m4 [T27] m4T1] m4",
    (1024, 1536, 2048),
    (0, 4096, 5504),
    (32, 48, 64),
    (1024, 1024, None),
  ),
  "2stage_XL_chinese": (
    "m4 [T1m4 [T30] m4T1] m4",
    (1024, 1536, 2048),
    (0, 4096, 5504),
    (32, 48, 64),
    (1024, 1024, None),
  ),
  "2stage_XL_code": (
    "m4 [T1m4 [T28] m4T1] m4",
    (1024, 1536, 2048),
    (0, 4096, 5504),
    (32, 48, 64),
    (1024, 1024, None),
  ),
}
POOL, SPACE = dict(kind="pool", width=6), dict(kind="space")
BASELINES = {  # [P] layouts and widths; inner widths 8/3 d_model rounded up to 128; router of the outer stage, a rule's
  "llamabyte": ("T16", (1024,), (2816,), (32,), (1024,), None),
  "llamabyte_global": ("T16", (1024,), (2816,), (32,), (None,), None),
  "mambabyte": ("m28", (1024,), (0,), (32,), (None,), None),
  "spacebyte": ("T8 [T16] T8", (768, 1536), (2048, 4096), (24, 48), (1024, None), SPACE),
  "spacebyte++": ("m4 [T28] m4", (1024, 1536), (0, 4096), (32, 48), (1024, None), SPACE),
  "pool": ("m4 [T28] m4", (1024, 1536), (0, 4096), (32, 48), (1024, None), POOL),
  "space": ("m4 [T28] m4", (1024, 1536), (0, 4096), (32, 48), (1024, None), SPACE),
  "spacebyte++_XL": ("m4 [T31] m4", (1024, 2048), (0, 5504), (32, 64), (1024, None), SPACE),
  "space_XL": ("m4 [T31] m4", (1024, 2048), (0, 5504), (32, 64), (1024, None), SPACE),
  "transformer": ("T24", (1536,), (4096,), (48,), (None,), None),
  "transformer_XL": ("T24", (2048,), (5504,), (64,), (None,), None),
}
# learning-rate multipliers per stage [D], paper eq. 11 with 4.6 bytes per GPT-2 token
MULTIPLIERS = {
  "1stage_L": (2.627, 0.876),
  "1stage_XL": (3.033, 0.876),
  "2stage_L": (2.627, 1.517, 0.715),
  "2stage_XL": (3.033, 1.430, 0.715),
  "2stage_XL_chinese": (3.033, 1.430, 0.715),
  "2stage_XL_code": (3.033, 1.430, 0.715),
  "pool": (2.627, 0.876),
  "space": (2.627, 0.876),
  "space_XL": (3.033, 0.876),
}


def get_config(name: str = "1stage_L") -> mlc.ConfigDict:
  if name not in (*RELEASED, *BASELINES):
    raise ValueError(f"no such model; there are {', '.join((*RELEASED, *BASELINES))}")
  layout, widths, d_ff, rotary, windows, *rule = {**RELEASED, **BASELINES}[name]
  num_chunkings = len(widths) - 1
  c = mlc.ConfigDict()
  c.seed = 0
  router = rule[0] if rule else dict(kind="learned")
  stages = [
    dict(
      d_model=widths[s],
      d_ff=d_ff[s],
      attention=dict(
        num_heads=16, position=dict(kind="rope", rotary_dim=rotary[s]), window=windows[s]
      ),
      mamba=dict(d_state=128, d_conv=4, expand=2),  # [R]
      **({"router": router} if s < num_chunkings else {}),
    )
    for s in range(len(widths))
  ]
  c.model = dict(
    kind="hnet", layout=layout, stages=stages, vocab_size=256, remat="minimal", dtype="bfloat16"
  )
  if name.startswith(
    "spacebyte"
  ):  # neither network norms nor a residual projection [P]; chunks are repeated
    c.model.network_norm, c.model.join = (
      False,
      dict(smooth=False, confident=False, residual="identity"),
    )
  c.objective = dict(
    kind="next_byte",
    ratio_weight=0.03,  # [P]
    targets={1: (6.0,), 2: (3.0, 3.0)}.get(num_chunkings, ()),  # [P]
    stats_scope="device",
  )  # [R]
  # 254 begins a document: a byte that UTF-8 never uses [R]
  c.data = dict(
    kind="text",
    source="array_record:data/fineweb_edu/{split}-*.array_record",
    tokenizer=dict(kind="bytes", offset=0, separator=254),
    seq_len=8192,
    batch_size=256,
  )  # [P] 2,097,152 bytes a step
  if name.startswith("transformer"):
    c.model.vocab_size, c.data.seq_len, c.data.tokenizer = (
      50_304,
      1792,
      dict(kind="bpe"),
    )  # 1792 GPT-2 tokens [P]
    # 50,257 entries [mem], rounded up to a multiple of 64 by us. One table for input and output
    # [D]: the printed 760M and 1.3B leave no room for a second one; then an H-Net's initial spread
    # of 1 would be that of the logits, too.
    c.model.tie_embeddings, c.model.embedding = True, dict(kind="learned", init_std=0.02)
  c.optimizer = dict(
    kind="adamw",
    learning_rate=5.0e-4 if "XL" in name else 6.25e-4,  # [P]
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,  # [mem]
    lr_multipliers=[
      ("^backbone/" + "inner/" * s if s else "", m) for s, m in enumerate(MULTIPLIERS.get(name, ()))
    ],
    decay="all",
    decay_overrides=[(r"/(b_\w+|norm_scale)$", 0.0)],
  )  # [R] the literal rule
  if "m" not in layout:  # no Mamba layers to exempt
    c.optimizer.decay_overrides = []
  c.schedule = dict(
    kind="warmup_stable_decay",
    warmup_steps=22_000,
    decay_fraction=0.2,  # [P] 10 %, 20 %
    decay="sqrt",
  )  # ours: the paper names an inverse square root and gives no formula
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=220_000, log_every=50, save_every=2_000, gather_dtype="bfloat16")  # [D]
  c.eval = dict(every=2_000, num_tokens=16_777_216)
  return c.lock()
