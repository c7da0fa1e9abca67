"""Attacks on activations by model size (arXiv 2312.02780): how many chosen tokens a free perturbation
of a positions controls.

  python experiments/actattack/scaling.py --scale smoke

Targets are drawn evenly from the n bytes that are a target OFTEN times or more in the validation rows:
with all 256 bytes, most of which the text never shows, every t_max was 0. t_max(a) is the largest
number of targets that at least 80 % of the attacks reach; kappa is its slope over a, of the a that
reach some target and not the longest, and chi = d 16 / (kappa log2 n) counts bits in per bit out. The
specification names a of 1, 2, 4, 8; here fewer than 8 of 16 positions control next to nothing. The range
of a was chosen after a look at seed 0 of models of width 16 to 128.

A real checkpoint: `jaxlm convert --from hf FOLDER --to OUT`, then
`jaxlm.analysis.activation_attack.attacker(Attack(), jaxlm.open_model(OUT), context, target)`.
"""

import numpy as np

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table

CONFIG = "configs/attnsink/tiny.py"
POSITIONS = (8, 10, 12, 14, 16)
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32)
CONTEXT, ATTACKS, STEPS = 16, 10, 300
SHORT = 8  # targets up to here run in a program of their own, half as long
ROWS_COUNTED, OFTEN = 512, 20
TOKENS = 4  # positions of the attack that replaces tokens


def measure(trained, overrides_at) -> Measured:
  import jax
  import jax.numpy as jnp

  from jaxlm.analysis import activation_attack as aa
  from jaxlm.experiments.readings import opened, validation

  model = opened(trained)
  V, D = model.config.vocab_size, model.config.d_model
  rng = np.random.default_rng(trained.config["seed"])
  rows = validation(model.data, ROWS_COUNTED)
  context = rows["tokens"][:ATTACKS, :CONTEXT]
  counts = np.bincount(rows["targets"][rows["loss_weights"] > 0], minlength=V)
  alphabet = np.flatnonzero(counts[:256] >= OFTEN)
  targets = rng.choice(alphabet, (ATTACKS, LENGTHS[-1]))
  attack = aa.Attack(steps=STEPS)
  few, many = (aa.attacker(attack, model, context, targets[:, :n]) for n in (SHORT, None))

  def sized(num_positions, num_targets):
    return (few if num_targets <= SHORT else many)(num_positions, num_targets)

  most = [aa.most_targets(sized, a, LENGTHS, attack.threshold)[0] for a in POSITIONS]
  # t_max may be larger than the longest target tried, and 0 says only that one target is too many.
  below = [(a, t) for a, t in zip(POSITIONS, most) if 0 < t < LENGTHS[-1]]
  fit = aa.line(*zip(*below)) if len(below) >= 3 else {}

  @jax.jit
  def last(params, rows):
    return jax.nn.log_softmax(model.config.build().apply({"params": params}, rows)[:, -1])

  def read(rows):
    return np.asarray(last(model.params, jnp.asarray(rows)))

  reached = []
  for b in range(ATTACKS):
    goal = int(targets[b, 0])
    found, _ = aa.token_attack(lambda rows, goal=goal: read(rows)[:, goal], context[b], V, TOKENS)
    whole = np.repeat(found[None], V, axis=0)  # of the same shape, so that one program serves all
    reached.append(int(read(whole)[0].argmax()) == goal)
  numbers = {f"t@{a}": float(t) for a, t in zip(POSITIONS, most)}
  numbers |= {"tokens": 100 * float(np.mean(reached)), "token_bits": TOKENS * np.log2(V)}
  numbers["bytes"] = len(alphabet)
  if fit:
    chi = aa.resistance(fit["kappa"], D, len(alphabet))
    numbers |= fit | {"chi": chi, "activation_bits": chi * np.log2(len(alphabet))}
    reason = "t_max does not grow with a"
  else:
    reason = (
      f"fewer than three a have a t_max above 0 and below the longest target tried, {LENGTHS[-1]}"
    )
  numbers = {name: float(x) for name, x in numbers.items() if np.isfinite(x)}
  wanted = ("kappa", "r2", "chi", "activation_bits")
  notes = {name: reason for name in wanted if name not in numbers}
  return Measured(numbers, notes, {"t_max": [float(t) for t in most]})


SIZES = (64, 96, 128, 192)
ROWS = [
  Row(
    f"d{d}",
    CONFIG,
    {
      "model.mixer": dict(kind="attention", num_heads=max(2, d // 16)),
      "model.d_model": d,
      "model.mlp.d_ff": 2 * d,
    },
    label=f"width {d}",
  )
  for d in SIZES
]
CHI = "chi, bits per bit"

TABLE = Table(
  name="actattack",
  title="Tokens that a free perturbation of a positions controls",
  rows=ROWS,
  columns=[
    *(Column(f"t_max, a = {a}", f"t@{a}", 0) for a in POSITIONS),
    Column("kappa", "kappa", 2),
    Column("R^2 of the line", "r2", 3),
    Column(CHI, "chi", 1),
    Column(f"one byte by {TOKENS} tokens, %", "tokens", 0),
    Column(f"bits of {TOKENS} tokens", "token_bits", 0),
    Column("n, bytes aimed at", "bytes", 0),
    Column("bits of activations per byte", "activation_bits", 0),
  ],
  scales={
    "smoke": Scale(
      "3 layers of width 64 to 192, 800 steps of 32 rows of 64 bytes; 10 attacks of 300 steps; about three "
      "minutes a row on one core",
      num_seeds=3,
      overrides={"train.steps": 800, "train.keep_every": 800, "train.save_every": 800},
    ),
    "small": Scale(
      "6 layers, the same widths, 10,000 steps of 64 rows of 256 bytes",
      num_seeds=3,
      overrides={
        "model.num_layers": 6,
        "model.unroll": 6,
        "data.seq_len": 256,
        "data.batch_size": 64,
        "train.steps": 10_000,
      },
    ),
  },
  measure=measure,
  source="arXiv 2312.02780: chi between 16 and 25 over two orders of magnitude of size (its abstract)",
  claims={
    "t_max is linear in a (R^2 of 0.9 at every width)": lambda t: (
      min(t[row.name, "R^2 of the line"] for row in ROWS) - 0.9
    ),
    "chi is about the same at every width (within a factor of 2)": lambda t: (
      2 - max(t[row.name, CHI] for row in ROWS) / min(t[row.name, CHI] for row in ROWS)
    ),
    "a wider model is controlled by fewer positions": lambda t: (
      t[ROWS[-1].name, "kappa"] - t[ROWS[0].name, "kappa"]
    ),
  },
  figure=Figure("t_max", "Controlled tokens by attacked positions", "a", "t_max"),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
