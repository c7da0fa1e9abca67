r"""H-Net at the size of a laptop: one chunking stage on an embedded novel, and what it is compared
with.

  jaxlm train --config=configs/hnet/tiny.py --workdir=runs/hnet-tiny
  jaxlm train --config=configs/hnet/tiny.py:pool --workdir=runs/pool-tiny

Arguments: 1stage (default), 2stage, pool, space, isotropic (attention), mamba, spacebyte,
spacebyte++, bpe. Every number is ours. FLOPs per byte of the variants are each within 8 % of 0.55
MFLOP by the paper's formula (a test; `experiments/hnet/table2.py` prints them at the compression
that was measured).
"""

import ml_collections as mlc

from jaxlm.layers.routers import ROUTERS

LAYOUTS = {
  "1stage": "m2 [T4] m2",
  "pool": "m2 [T4] m2",
  "space": "m2 [T4] m2",
  "isotropic": "T3",
  "mamba": "m7",
  "2stage": "m2 [m1 [T3] m1] m2",
  "spacebyte": "T1 [T4] T1",
  "spacebyte++": "m2 [T4] m2",
  "bpe": "T4",
}
WIDTHS = {
  "isotropic": (64,),
  "mamba": (64,),
  "bpe": (96,),
  "2stage": (64, 64, 96),
}  # the others: (64, 96)
TARGETS = {"isotropic": (), "mamba": (), "bpe": (), "2stage": (2.5, 2.0)}  # the others: (5,)
SPACE = dict(kind="space")
RULES = {
  "pool": dict(kind="pool", width=5),
  "space": SPACE,
  "spacebyte": SPACE,
  "spacebyte++": SPACE,
}  # the others: learned
CAPACITIES = {
  1: ((32,), (64,), (128,)),
  2: ((64, 32), (96, 64), (128, 128)),
}  # few, since each is compiled
MULTIPLIERS = {2: (2.0, 1.0), 3: (2.0, 1.5, 1.0)}  # by hand, as the paper says works well
# A learned router starts as the identity: it cuts where neighbouring rows of the encoder differ. We
# suppose, without having measured it, that at the others' rate it leaves that before those rows say
# anything, and that its cuts stay where they fell; in the paper the warm-up alone is 22,000 steps.
# What other values gave: experiments/hnet/NOTES.md.
ROUTER_RATE = 0.02


def get_config(name: str = "1stage") -> mlc.ConfigDict:
  if name not in LAYOUTS:
    raise ValueError(f"no such model; there are {', '.join(LAYOUTS)}")
  widths, targets = WIDTHS.get(name, (64, 96)), TARGETS.get(name, (5.0,))
  router = RULES.get(name, dict(kind="learned"))
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="hnet",
    layout=LAYOUTS[name],
    stages=[
      dict(
        d_model=d,
        d_ff=256,
        attention=dict(num_heads=4, position=dict(kind="rope", rotary_dim=8)),
        mamba=dict(d_state=32, head_dim=64),
        **({"router": router} if s < len(widths) - 1 else {}),
      )
      for s, d in enumerate(widths)
    ],
    vocab_size=256,
    dtype="float32",
    unroll=1 if targets else 6,
  )  # a loop over layers costs a CPU some time in the step and saves it in compiling
  if "spacebyte" in name:  # neither network norms nor a residual projection; chunks are repeated
    c.model.network_norm, c.model.join = (
      False,
      dict(smooth=False, confident=False, residual="identity"),
    )
  # ratio_weight: the paper has 0.03 and runs 183 times as long
  c.objective = dict(kind="next_byte", targets=targets, ratio_weight=0.1, multiple=8)
  if targets:
    c.objective.capacities = CAPACITIES[len(targets)]
  c.data = dict(
    kind="text",
    source="mini:moby_dick",
    tokenizer=dict(kind="bytes", offset=0, separator=254),
    seq_len=128,
    batch_size=8,
  )
  if (
    name == "bpe"
  ):  # 1,024 entries make 2.58 bytes a token of this novel: 48 tokens for the others' 128 bytes
    c.model.vocab_size, c.data.seq_len = 1024, 48
    c.data.tokenizer = dict(kind="trained_bpe", vocab_size=1024)
  c.optimizer = dict(
    kind="adamw",
    learning_rate=1.5e-3,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
    decay="matrices",
    decay_overrides=[("^embed/", 0.0)],
    lr_multipliers=[
      ("^backbone/" + "inner/" * s if s else "", m)
      for s, m in enumerate(MULTIPLIERS.get(len(widths), ()))
    ],
  )
  if targets and ROUTERS.cls(router["kind"]).learned:
    c.optimizer.lr_multipliers = [*c.optimizer.lr_multipliers, ("/router/", ROUTER_RATE)]
  c.schedule = dict(kind="warmup_stable_decay", warmup_steps=120, decay_fraction=0.2, decay="sqrt")
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=1200, log_every=20, save_every=500)
  c.eval = dict(every=250, num_tokens=32_768)
  return c.lock()
