"""Parts of one paper in the model of another: what nobody has published, 300 steps each on one text.

  python experiments/cross/matrix.py --scale smoke      (or: jaxlm table experiments/cross/matrix.py …)

A child takes a part from each of two parents and is compared with each of them. All read the same two
novels as bytes, at the same width, depth, steps and rate; children have the parents' matrix products
but for the part that is exchanged (column: counted in the traced program). The lexinvariant rows know
bytes only by what is equal, and are compared with the lexinvariant parent alone. Combinations that the
library refuses are in REFUSED, each with its sentence; a test holds them.
"""

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table
from jaxlm.experiments.measures import all_of, perplexity_at

DEMO, HNET = "configs/carope/demo.py", "configs/hnet/tiny.py:1stage"
BPB = "bits per byte"
ROPE, CAROPE = dict(kind="rope"), dict(kind="carope", init="rope")
LEXINVARIANT = dict(kind="lexinvariant")
GATED_DELTA = dict(kind="gated_delta_rule", num_heads=2)


def lact(**fields):
  fast = dict(num_heads=2, chunk=32, base_rate=0.1, documents="shared")
  fast["update"] = dict(momentum=True, muon="language")
  return dict(kind="lact", num_heads=4, window=32, fast=fast, **fields)


def decoder(name: str, label: str, position, **model) -> Row:
  overrides = {"model.num_layers": 2, "model.unroll": 2, "model.position": position}
  if "embedding" in model:
    overrides["data.sequence_seeds"] = True
  return Row(name, DEMO, overrides | {f"model.{k}": v for k, v in model.items()}, label=label)


def hnet(position):
  """Every attention of the H-Net with another position encoding."""

  def stages(c):
    return [
      dict(stage, attention=dict(stage["attention"], position=position))
      for stage in c["model"]["stages"]
    ]

  # The text marks its documents by byte 254 in both models.
  return {
    "model.stages": stages,
    "data.source": "mini:en",
    "schedule.warmup_steps": 30,
    "train.log_every": 10,
    "train.save_every": 0,
    "eval.every": 0,
  }


# child: the parents that it is compared with
CHILDREN = {
  "carope_lact": ("carope", "lact"),
  "lex_carope": ("lex",),
  "lex_lact": ("lex",),
  "lex_gated_delta": ("lex",),
  "hnet_carope": ("hnet",),
}
ROWS = [
  decoder("rope", "attention, RoPE", ROPE),
  decoder("carope", "attention, CARoPE", CAROPE),
  decoder("lact", "LaCT, RoPE", ROPE, mixer=lact()),
  decoder("gated_delta", "gated delta rule", dict(kind="none"), mixer=GATED_DELTA),
  decoder("carope_lact", "LaCT, CARoPE in its window", CAROPE, mixer=lact(rotate_fast=False)),
  decoder("lex", "lexinvariant, RoPE", ROPE, embedding=LEXINVARIANT),
  decoder("lex_carope", "lexinvariant, CARoPE", CAROPE, embedding=LEXINVARIANT),
  decoder("lex_lact", "lexinvariant, LaCT", ROPE, embedding=LEXINVARIANT, mixer=lact()),
  decoder(
    "lex_gated_delta",
    "lexinvariant, gated delta rule",
    dict(kind="none"),
    embedding=LEXINVARIANT,
    mixer=GATED_DELTA,
  ),
  Row("hnet", HNET, hnet(dict(kind="rope", rotary_dim=8)), label="H-Net (1-stage), RoPE"),
  Row("hnet_carope", HNET, hnet(CAROPE), label="H-Net (1-stage), CARoPE"),
]

_LACT_LAYOUT = {"model.layout": "m2 [L4] m2"}
_CAROPE = {"model.position": CAROPE}
#: (what, configuration, overrides, the sentence's beginning)
REFUSED = (
  ("LaCT in H-Net's main network", HNET, _LACT_LAYOUT, "layout 'm2 [L4] m2': character 5"),
  (
    "MrT5's gate as H-Net's router",
    HNET,
    {"model.stages.0.router": dict(kind="delete_gate")},
    "model.stages[0].router.kind = 'delete_gate' is not a router",
  ),
  (
    "H-Net's router as MrT5's gate",
    "configs/mrt5/smoke.py",
    {"model.reduction": dict(kind="learned", layer=1)},
    "model.reduction.kind = 'learned' is not a reduction",
  ),
  (
    "CARoPE in MrT5",
    "configs/mrt5/smoke.py",
    _CAROPE,
    "unknown key --config.model.position",
  ),
  (
    "a gated delta rule in an insertion model",
    "configs/ilm/star_easy.py:insertion",
    {"model.mixer": GATED_DELTA},
    "mixer GatedDeltaRuleConfig: a slot is judged by both sides",
  ),
  (
    "LaCT's memory turned by CARoPE",
    DEMO,
    {"model.position": CAROPE, "model.mixer": lact()},
    "rotate_fast = True: only rope turns the memory's q and k",
  ),
)


def products(trained, overrides_at) -> Measured:
  """numbers: mflop, matrix products of a forward pass per byte, as traced (an H-Net with all its
  slots)."""
  import jax
  import jax.numpy as jnp

  from jaxlm.evaluation.flops import dot_flops
  from jaxlm.layers.lexinvariant import lexicon_of
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  model, T = cfg.model.build(), cfg.data.seq_len
  ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
  seeds = {"sequence_seeds": jnp.zeros((1, 2), jnp.uint32)}
  tables = lexicon_of(cfg.model, seeds, train=False)
  flops = dot_flops(
    lambda params, *args: model.apply({"params": params}, *args, **tables),
    trained.params,
    *(ids, ids, ids),
  )
  return Measured({"mflop": flops / T / 1e6}, {}, {})


def better_than_parents(child: str):
  return lambda t: min(t[parent, BPB] for parent in CHILDREN[child]) - t[child, BPB]


LABELS = {row.name: row.label for row in ROWS}
TABLE = Table(
  name="cross-matrix",
  title="Parts of one paper in the model of another",
  rows=ROWS,
  columns=[
    Column(BPB, "bpb@1x", 3),
    Column("at twice the length", "bpb@2x", 3),
    Column("MFLOP per byte, all slots", "mflop", 3),
  ],
  scales={
    "smoke": Scale(
      "decoders of 2 layers, d_model 128; H-Net of widths 64/96; 300 steps of 8 rows of 128 bytes of two novels",
      num_seeds=3,
      overrides={
        "data.seq_len": 128,
        "data.batch_size": 8,
        "train.steps": 300,
        "eval.num_tokens": 32_768,
      },
    )
  },
  measure=all_of(perplexity_at((1, 2)), products),
  source="no paper: ours. Refused: " + "; ".join(what for what, *_ in REFUSED),
  claims={
    f"{LABELS[child]}: better than {' and '.join(LABELS[p] for p in parents)}": better_than_parents(
      child
    )
    for child, parents in CHILDREN.items()
  },
  figure=Figure(
    "loss@2x",
    "Loss by position",
    "position in the window (bytes)",
    "loss (nats per byte)",
    smooth=9,
    rows=("rope", "carope", "lact", "gated_delta", "carope_lact", "hnet", "hnet_carope"),
    marks=lambda config: {config["data"]["seq_len"]: "training length"},
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
