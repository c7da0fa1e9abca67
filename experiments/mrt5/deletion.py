"""Measures of models that shorten their encoder's sequence: accuracy, loss, how much goes, how wide
a batch stays.

Axes: B batch, L encoder length, T decoder length.
"""

import numpy as np

from jaxlm.experiments.table import Measured, Trained
from jaxlm.training import metrics

#: Logged at every log step of a run whose encoder has a gate.
CURVES = ("deleted", "alpha", "loss")


def deletion(
  *, num_rows: int = 1024, split: str = "validation", hard: bool = True, timed: bool = False
):
  """Measure, teacher-forced, over `num_rows` rows; a gate deletes hard if `hard`.

  numbers: accuracy, sequence_accuracy (percent of tokens, of rows); bits (mean cross-entropy per
  target token, in bits); deleted (percent of the input's tokens that do not go on; of pooling:
  fewer slots than tokens); width (mean over batches of the widest row, what static shapes pay for),
  mean_width (mean over rows); with `timed` those of `runtime`.
  curves: of training, by log step.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    sums = {}
    for found in batches_of(trained, num_rows=num_rows, split=split, hard=hard):
      for name, value in found.items():
        sums[name] = sums.get(name, 0.0) + float(value)
    numbers = summary(sums) | (runtime(trained) if timed else {})
    return Measured(numbers, {}, training_curves(trained.workdir))

  return measure


def by_language(languages, **options):
  """Measure: `deletion` on the test split of each language alone; numbers name@language, and the
  mean weighted by rows.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.experiments.runner import override

    numbers, total = {}, {}
    for language in languages:
      config, sums = override(trained.config, {"data.languages": (language,)}), {}
      for found in batches_of(trained._replace(config=config), split="test", **options):
        for name, value in found.items():
          sums[name] = sums.get(name, 0.0) + float(value)
      total = {name: total.get(name, 0.0) + value for name, value in sums.items()}
      numbers |= {f"{name}@{language}": value for name, value in summary(sums).items()}
    return Measured(
      numbers | summary(total) | runtime(trained), {}, training_curves(trained.workdir)
    )

  return measure


def answers(*, max_len: int = 256, num_questions: int | None = None):
  """Measure: exact match and F1 (percent) of greedily decoded answers to the test split's
  questions, deleted tokens.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.data import byte_t5
    from jaxlm.evaluation.answers import answer_scores
    from jaxlm.generation import engine_for
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    questions, exact, f1 = cfg.data.questions("test")[:num_questions], 0.0, 0.0
    prompts = [byte_t5.encode(byte_t5.qa_texts(q)[0], cfg.data.seq_len) for q in questions]
    engine = engine_for(cfg.model, data=cfg.data, input_len=cfg.data.seq_len)
    found = engine.generate(trained.params, prompts, max_len, batch_size=cfg.data.batch_size)
    for question, ids in zip(questions, found.answers):
      scores = answer_scores(byte_t5.decode(ids), question["answers"])
      exact, f1 = exact + scores[0], f1 + scores[1]
    numbers = deletion(split="test", num_rows=len(questions), timed=True)(
      trained, overrides_at
    ).numbers
    return Measured(
      numbers | {"exact": 100 * exact / len(questions), "f1": 100 * f1 / len(questions)}, {}, {}
    )

  return measure


def runtime(
  trained: Trained,
  *,
  num_rows: int = 32,
  repeats: int = 5,
  split: str = "validation",
  multiple: int = 1,
  capacity: int | None = None,
) -> dict[str, float]:
  """Teacher-forced forward passes, compiled before, their median: CPU time per example (cpu_ms),
  wall time (wall_ms), the capacity behind the gate. Tokens are deleted hard, in two programs,
  whatever deletes them; capacity: instead of the one that fits. Pooling is one program whose slots
  suffice for the fullest row, known beforehand."""
  import time

  import jax
  import jax.numpy as jnp

  from jaxlm.generation.hard_deletion import TwoPrograms, evaluation_mode
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  model = cfg.model.build()
  batch = next(iter(cfg.data.build(split, seed=cfg.seed, repeat=False)))
  tokens, decoder = (
    jnp.asarray(np.resize(batch[name], (num_rows, batch[name].shape[1])))
    for name in ("tokens", "decoder_tokens")
  )
  key = jax.random.key(0)
  if cfg.model.reduction is not None and cfg.model.reduction.tau is not None:
    programs = TwoPrograms(model, trained.params, multiple=multiple)

    def forward():
      front = programs.front(tokens, None, key)
      fits = programs.capacity(front.count_B, tokens.shape[1])  # the host reads the counts
      return programs.logits(front, decoder, capacity=capacity or fits), fits
  else:
    mode = evaluation_mode(cfg.model)
    whole = jax.jit(
      lambda params, slots: model.apply(
        {"params": params},
        tokens,
        decoder,
        mode=mode._replace(capacity=slots),
        rngs={"noise": key},
        method="run",
      )[:2],
      static_argnums=1,
    )
    reduced = whole(trained.params, None)[1].memory.reduced
    fits = (
      None
      if reduced is None
      else min(-(-int(reduced.count_B.max()) // multiple) * multiple, tokens.shape[1])
    )

    def forward():
      logits, (memory, _) = whole(trained.params, fits)
      return logits, memory.h_BCD.shape[1]

  _, width = forward()
  jax.block_until_ready(forward())
  times = []
  for _ in range(repeats):
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(forward())
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
  wall, cpu = 1e3 * np.median(times, axis=0) / num_rows
  return {"wall_ms": float(wall), "cpu_ms": float(cpu), "capacity": float(capacity or width)}


def capacity_cost(*, num_rows: int = 4, repeats: int = 15):
  """Measure without training: a forward pass at objective.capacities[0] slots of an evaluate_from
  row (None: all).

  numbers: those of `runtime`, gflop (matrix products per example), formula_gflop, temp_mb (the
  compiler's temporaries of what stands behind the gate).
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    import jax
    import jax.numpy as jnp

    from jaxlm.evaluation.flops import dot_flops
    from jaxlm.experiments.runner import override
    from jaxlm.generation.hard_deletion import TwoPrograms
    from jaxlm.models.encoder_decoder import forward_flops
    from jaxlm.training.config import run_config

    config = override(trained.config, overrides_at(1))
    cfg = run_config(config)
    L, T = cfg.data.seq_len, cfg.data.target_len
    capacity = cfg.objective.capacities[0] if cfg.objective.capacities else L
    numbers = runtime(
      trained._replace(config=config), num_rows=num_rows, repeats=repeats, capacity=capacity
    )
    programs = TwoPrograms(cfg.model.build(), trained.params)

    def ids(length):
      return jax.ShapeDtypeStruct((num_rows, length), jnp.int32)

    front = jax.eval_shape(programs.front, ids(L))
    back = programs.compile_logits(front, ids(T), capacity)
    flops = dot_flops(programs.front, ids(L)) + dot_flops(
      lambda f, d: programs.logits(f, d, capacity=capacity), front, ids(T)
    )
    numbers |= {
      "gflop": flops / num_rows / 1e9,
      "temp_mb": back.memory_analysis().temp_size_in_bytes / 1e6,
      "formula_gflop": forward_flops(cfg.model, L, T, capacity) / 1e9,
    }
    return Measured(numbers, {}, {})

  return measure


def batches_of(trained: Trained, *, num_rows: int, split: str, hard: bool):
  """Sums of each batch: what `summary` divides."""
  import jax
  import jax.numpy as jnp

  from jaxlm.data.byte_t5 import PAD
  from jaxlm.generation.hard_deletion import evaluation_mode
  from jaxlm.objectives.sequence_to_sequence import accuracies
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  model = cfg.model.build()
  mode = evaluation_mode(cfg.model)
  mode = mode if hard else mode._replace(hard=False)

  @jax.jit
  def run(params, batch, key):
    real_BL, w_BT = batch["tokens"] != PAD, batch["loss_weights"]
    logits_BTV, (memory, _), _ = model.apply(
      {"params": params},
      batch["tokens"],
      batch["decoder_tokens"],
      real_BL,
      mode=mode,
      method="run",
      rngs={"noise": key},
    )
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), batch["targets"][..., None], -1)[
      ..., 0
    ]
    found = {name: pair for name, pair in accuracies(logits_BTV, batch["targets"], w_BT).items()}
    lengths_B = jnp.sum(real_BL, axis=1)
    reduced = memory.reduced
    kept_B = (
      lengths_B
      if reduced is None
      else jnp.sum(reduced.keep_BL & real_BL, axis=1)
      if reduced.keep_BL is not None
      else reduced.count_B
    )
    return dict(
      right=found["accuracy"].sum,
      tokens=found["accuracy"].weight,
      right_rows=found["sequence_accuracy"].sum,
      rows=found["sequence_accuracy"].weight,
      nll=jnp.sum(nll_BT * w_BT),
      weight=jnp.sum(w_BT),
      real=jnp.sum(lengths_B),
      kept=jnp.sum(kept_B),
      widest=jnp.max(kept_B),
      batches=jnp.ones(()),
    )

  seen = 0
  for i, batch in enumerate(cfg.data.build(split, seed=cfg.seed, repeat=False)):
    yield jax.device_get(
      run(trained.params, batch, jax.random.fold_in(jax.random.key(cfg.seed), i))
    )
    seen += batch["tokens"].shape[0]
    if seen >= num_rows:
      return


def summary(sums) -> dict[str, float]:
  return {
    "accuracy": 100 * sums["right"] / sums["tokens"],
    "sequence_accuracy": 100 * sums["right_rows"] / sums["rows"],
    "bits": sums["nll"] / sums["weight"] / float(np.log(2)),
    "deleted": 100 * (1 - sums["kept"] / sums["real"]),
    "width": sums["widest"] / sums["batches"],
    "mean_width": sums["kept"] / sums["rows"],
  }


def training_curves(workdir, names=CURVES) -> dict[str, list[float]]:
  """Each of `names` at every log step, from the run's metrics."""
  records = [r for r in metrics.read(workdir) if "loss" in r]
  return {name: [r.get(name) for r in records] for name in names if any(name in r for r in records)}
