"""Block diffusion: bits per byte over the block length, and what a policy over lengths earns.

  python experiments/decoding/ctrldiff.py --scale smoke|small

Sources: Arriola et al., "Block Diffusion", arXiv 2503.09573; Huang and Tang, "CtrlDiff", arXiv 2505.14455. Bits
per byte are a bound except for blocks of one byte, which are left to right. The policy's state, reward and
estimator are our interpretation (generation/engine/block_policy.py). Guidance is by a linear classifier of
bytes that tells the two novels of the text apart; another one, trained on the other half, counts the rate.

Sampling with few steps: the network of all lengths writes texts in blocks of one fixed length, or of those
that the policy chooses, with the same number of steps per block. Quality is what the left-to-right model
of the table gives the texts, in bits per byte; entropy is of the bytes of a text, for a text that repeats itself
is likely too.
"""

import functools

from experiments.decoding.pair import CONFIG, SMALL
from jaxlm.experiments import Column, Measured, Row, Scale, Table

BEGIN = 254  # the separator of documents
CHOICES = (1, 4, 8, 16)
STEPS = 4  # of a block, whatever its length; one more pass keeps it
COST = 0.1  # nats that a pass is worth
BATCHES, GUIDED, WRITTEN = 24, 48, 63


def measure(trained, overrides_at) -> Measured:
  """bpb: of the row's own blocks, over validation rows. Of the row of all lengths, the policy too. Rows
  with settings: what texts of that row are like, see `written`.
  """
  import math

  import jax
  import numpy as np

  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  if trained.settings:
    return Measured(written(trained, cfg), {}, {})
  model = cfg.model.build()
  loss = jax.jit(
    lambda params, batch, key: cfg.objective.loss(model, params, batch, key, {}, train=False).loss
  )
  total = np.zeros(2)
  rows = iter(cfg.data.build("validation", seed=0, repeat=True))
  for number in range(BATCHES):
    batch = {k: v for k, v in next(rows).items()}
    total += np.asarray(loss(trained.params, batch, jax.random.key(number)), np.float64)
  numbers = {"bpb": float(total[0] / total[1] / math.log(2))}
  if len(cfg.objective.block_lens) > 1:
    numbers |= policy_numbers(cfg, trained.params)
  if cfg.objective.block_lens == (16,):
    numbers |= guided(cfg, trained.params)
  return Measured(numbers, {}, {})


def policy_numbers(cfg, params) -> dict:
  """Rewards of the policy and of fixed lengths on validation rows, in nats per token. The best fixed
  length is chosen on these rows themselves, the policy on training rows.
  """
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.generation.engine import block_policy

  learned = learn(cfg, params)
  test_h, test_r = states_and_rewards(cfg, params, "validation", 1, 16)
  choice = jnp.argmax(block_policy.policy_logits(learned, test_h), axis=1)
  earned = float(jnp.mean(test_r[jnp.arange(len(choice)), choice]))
  fixed = np.asarray(jnp.mean(test_r, axis=0))
  return {
    "policy": earned,
    "best_fixed": float(fixed.max()),
    "mean_length": float(np.mean(np.asarray(CHOICES)[np.asarray(choice)])),
  }


def learn(cfg, params):
  """Parameters of a policy, from training rows."""
  import jax

  from jaxlm.generation.engine import block_policy

  hidden, rewards = states_and_rewards(cfg, params, "train", 0, 32)
  return block_policy.train(jax.random.key(0), hidden, rewards, steps=1500)[0]


def states_and_rewards(cfg, params, split, seed, num_batches):
  """(hidden states (N, D), what each length earns in each of them (N, A))."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  rows = iter(cfg.data.build(split, seed=seed, repeat=True))
  run, hidden, reward = _states(cfg.model, cfg.objective.mask), [], []
  for number in range(num_batches):
    tokens = jnp.asarray(next(rows)["tokens"])
    h, r = run(params, tokens, jax.random.key(number))
    hidden.append(np.asarray(h))
    reward.append(np.asarray(r))
  return jnp.asarray(np.concatenate(hidden)), jnp.asarray(np.concatenate(reward))


def written(trained, cfg) -> dict:
  """Of texts of WRITTEN bytes: passes of the network per byte, bits per byte of the left-to-right model,
  entropy of a text's bytes in nats.
  """
  import math

  import jax
  import jax.numpy as jnp
  import numpy as np

  from experiments.decoding.pair import batch_of, beside
  from jaxlm.evaluation.judge import unigram_entropy
  from jaxlm.generation.engine.block_policy import BlockPolicy
  from jaxlm.generation.engine.blocks import Blocks
  from jaxlm.objectives.block_diffusion import bound

  length = trained.settings["length"]
  policy = BlockPolicy(CHOICES, learn(cfg, trained.params)) if length == "policy" else None
  most = max(CHOICES) if policy else length
  engine = Blocks(cfg.model, cfg.objective.mask, block_len=most, steps=STEPS, policy=policy)
  batch = batch_of(engine, [[BEGIN]] * GUIDED, WRITTEN, 0)
  blocks_B, before_B = np.zeros(GUIDED), np.zeros(GUIDED)
  for texts_BG, count_B, _, _ in engine.stream(trained.params, batch):  # noqa: B007 (the last is used)
    blocks_B += count_B > before_B
    before_B = count_B
  rows_BT = np.concatenate([np.full((GUIDED, 1), BEGIN), texts_BG], axis=1).astype(np.int32)
  judge, model = beside(trained, "b1").params, cfg.model.build()
  inside_BT = np.ones(rows_BT.shape, np.float32)
  inside_BT[:, 0] = 0
  nats = jax.jit(
    lambda params, x: bound(
      model,
      params,
      x,
      jnp.ones(x.shape, bool),
      1.0,
      jnp.ones(len(x), jnp.int32),
      cfg.objective.mask,
      inside_BT,
    )
  )(judge, jnp.asarray(rows_BT))
  return {
    "passes": float(np.mean(blocks_B) * (STEPS + 1) / WRITTEN),
    "judged": float(nats) / (GUIDED * WRITTEN) / math.log(2),
    "entropy": float(np.mean([unigram_entropy(row) for row in rows_BT])),
  }


@functools.cache
def _states(model, mask: int):
  """(params, tokens_BT, key) -> (hidden state of a clean prefix (B, D), reward of each length (B, A)), at the
  middle of each row; compiled once.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.generation.engine import block_policy

  @jax.jit
  def run(params, tokens_BT, key):
    B, T = tokens_BT.shape
    start = T // 2
    state = model.init_state(B, T)
    (_, state), sown = model.build().apply(
      {"params": params}, tokens_BT[:, :start], state, method="extend", mutable=["intermediates"]
    )
    hidden_BD = sown["intermediates"]["final"][0][:, -1]
    out = []
    for length in CHOICES:
      block_BC = tokens_BT[:, start : start + length]
      t = 1.0 if length == 1 else jnp.maximum(jax.random.uniform(key, (B, 1)), 0.05)
      masked_BC = jax.random.uniform(jax.random.fold_in(key, length), block_BC.shape) < t
      noisy_BC = jnp.where(masked_BC, mask, block_BC)
      logits, _ = model.build().apply({"params": params}, noisy_BC, state, method="extend")
      log_p = jax.nn.log_softmax(logits.at[..., mask].set(-1e30))
      nll_BC = -jnp.take_along_axis(log_p, block_BC[..., None], 2)[..., 0]
      bound_B = jnp.mean(jnp.where(masked_BC, nll_BC / t, 0.0), axis=1)
      out.append(block_policy.reward(bound_B, length, STEPS + 1, COST))
    return hidden_BD, jnp.stack(out, axis=1)

  return run


def guided(cfg, params) -> dict:
  """Share of samples that a classifier of the other half calls Melville's, by strength."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.data.mini import mini
  from jaxlm.generation.engine.blocks import Blocks

  length = 32

  def windows(book, split):
    text = np.frombuffer(b"".join(mini(book)[1][split]), np.uint8).astype(np.int32)
    return text[: len(text) // length * length].reshape(-1, length)

  def classifier(split):
    x = [windows(b, split) for b in ("moby_dick", "pride_and_prejudice")]
    n = min(map(len, x))
    counts = np.concatenate([np.stack([np.bincount(r, minlength=256) for r in w[:n]]) for w in x])
    y = np.concatenate([np.ones(n), -np.ones(n)])
    w, mean = np.zeros(256), counts.mean(0)
    for _ in range(300):
      margin = y * ((counts - mean) @ w)
      w += 0.5 * ((counts - mean).T @ (y / (1 + np.exp(margin)))) / len(y) - 1e-3 * w
    return jnp.asarray(w, jnp.float32), jnp.asarray(mean, jnp.float32)

  w, mean = classifier("train")
  judge_w, judge_mean = classifier("validation")

  def log_c(onehot_BCV):
    return jax.nn.log_sigmoid(jnp.sum(onehot_BCV, axis=1) @ w - jnp.sum(mean * w))

  out, prompt = {}, [BEGIN]
  for strength in (0.0, 4.0):
    engine = Blocks(
      cfg.model,
      cfg.objective.mask,
      block_len=16,
      steps=8,
      guide=None if not strength else Guide(log_c, strength),
    )
    answers = engine.generate(params, [prompt] * GUIDED, length, seed=0).answers
    counts = jnp.asarray(np.stack([np.bincount(a, minlength=256) for a in answers]), jnp.float32)
    out[f"rate@{strength:g}"] = float(jnp.mean((counts - judge_mean) @ judge_w > 0))
  return out


class Guide:
  """First-order guidance as the engine calls it."""

  def __init__(self, log_c, strength: float):
    self.log_c, self.strength = log_c, strength

  def __call__(self, x_BC, logits_BCV):
    from jaxlm.generation.engine import guidance

    return guidance.first_order(self.log_c, x_BC, logits_BCV, self.strength)


BPB, RATE, GUIDED_RATE = "bits per byte", "Melville, unguided", "Melville, guided"
EARNED, FIXED = "policy earns", "best fixed length earns"
PASSES, JUDGED = "passes per byte", "its texts, bits per byte"
WRITERS = ("fixed16", "fixed8", "fixed4")


def beyond_fixed(t) -> float:
  """Bits per byte by which the policy's texts are better than those of fixed lengths with as many passes,
  on straight lines between them.
  """
  import numpy as np

  passes, judged = ([t[row, title] for row in WRITERS] for title in (PASSES, JUDGED))
  return float(np.interp(t["dynamic", PASSES], passes, judged)) - t["dynamic", JUDGED]


def blocks(*lengths):
  return {"objective.block_lens": list(lengths)}


TABLE = Table(
  name="decoding-ctrldiff",
  title="Block diffusion between left to right and masked diffusion",
  rows=[
    Row("b1", f"{CONFIG}:blocks", blocks(1), label="blocks of 1 (left to right)"),
    *(Row(f"b{n}", f"{CONFIG}:blocks", blocks(n), label=f"blocks of {n}") for n in (4, 8, 16)),
    Row("whole", f"{CONFIG}:blocks", blocks(0), label="one block (masked diffusion)"),
    Row("all", f"{CONFIG}:blocks", blocks(*CHOICES), label="lengths 1, 4, 8, 16 by turns"),
    *(
      Row(
        f"fixed{n}",
        evaluate_from="all",
        label=f"it writes in blocks of {n}",
        settings={"length": n},
      )
      for n in (4, 8, 16)
    ),
    Row(
      "dynamic",
      evaluate_from="all",
      label="it writes in blocks that the policy chooses",
      settings={"length": "policy"},
    ),
  ],
  columns=[
    Column(BPB, "bpb", 3),
    Column(EARNED, "policy", 3),
    Column(FIXED, "best_fixed", 3),
    Column("its mean length", "mean_length", 1),
    Column(PASSES, "passes"),
    Column(JUDGED, "judged"),
    Column("entropy of a text", "entropy"),
    Column(RATE, "rate@0"),
    Column(GUIDED_RATE, "rate@4"),
  ],
  scales={
    "smoke": Scale(
      "3 layers of width 96, bytes of two novels, context 64, 1,000 steps of 1,024 bytes",
      num_seeds=3,
    ),
    "small": Scale("the same at context 256, 20,000 steps of 16,384 bytes", overrides=SMALL),
  },
  measure=measure,
  claims={
    "longer blocks cost bits: 1 < 4 < 16 < whole row": lambda t: min(
      t[b, BPB] - t[a, BPB] for a, b in (("b1", "b4"), ("b4", "b16"), ("b16", "whole"))
    ),
    "a policy over lengths earns at least what the best fixed length does": lambda t: (
      t["all", EARNED] - t["all", FIXED]
    ),
    "longer blocks write worse texts with fewer passes: 4, 8, 16": lambda t: min(
      t[b, JUDGED] - t[a, JUDGED] for a, b in (("fixed4", "fixed8"), ("fixed8", "fixed16"))
    ),
    "the policy's texts are better than those of fixed lengths with as many passes": beyond_fixed,
    "guidance raises the share of samples with the attribute": lambda t: (
      t["b16", GUIDED_RATE] - t["b16", RATE]
    ),
  },
  source="arXiv 2503.09573; arXiv 2505.14455",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
