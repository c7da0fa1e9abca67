r"""Insertion models in one run: the joint loss against the dense formulation, and the sampler
against full-length buffers.

  python bench/insertion.py                              # both; --part loss or --part sampler for one

1. A training step (forward, backward, clip, AdamW) at vocabulary 30,522, length 128, batch 32, on
   sequences of 128 tokens of which a uniform number is missing, with our loss and with the dense
   one: all logits, a float32 target distribution over (slot, token) and one log softmax over both,
   as the release writes it (its counts are int64, twice ours). Every side lives in its own process;
   programs are compiled by a process that ends before, so that no peak is a compiler's.
   Peak memory: what the process held above its imports; and the compiler's own figure of the step's
   temporaries.
2. Greedy two-stage sampling: ours; our loop in a buffer of full length from the start; and a Python
   loop of jitted passes in full-length buffers that makes all logits, until every row has stopped.
   --lengths full: all rows stop at 256 tokens (the worst case); even: at 256 / B, 2 * 256 / B, ...,
   256. The share of places where they wrote the same token is printed: sums in another order decide
        near ties otherwise. All sides keep freed memory (`jaxlm/parallel/cpu.py`), without which
   the dense side's logits cost a page fault for every 4 KiB.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from jaxlm import json_text

SIDES = ("ours", "dense")
CLS, BOS, PAD, MASK, EOS = 30517, 30518, 30519, 30520, 30521
VOCAB = 30522


def config(args, length):
  import ml_collections as mlc

  c = mlc.ConfigDict()
  c.model = dict(
    kind="insertion",
    vocab_size=VOCAB,
    d_model=args.d_model,
    num_layers=4,
    mixer=dict(kind="attention", num_heads=args.d_model // 64, causal=False),
    mlp=dict(d_ff=4 * args.d_model, activation="relu", use_bias=True),
    norm=dict(kind="layer"),
    position=dict(kind="rope"),
    embedding=dict(kind="learned", init_std=1.0),
    tie_embeddings=False,
    final_norm=False,
    dtype="float32",
    unroll=4,
  )
  c.objective = dict(kind="insertion")
  c.data = dict(
    kind="passages", source="mini:en", seq_len=length, batch_size=args.batch_size
  )  # not read
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0
  )
  c.schedule = dict(kind="constant", warmup_steps=0)
  c.train = dict(steps=1000)
  return c


def batch_of(args, length):
  """Whole sequences of `length` tokens, corrupted as in training."""
  import numpy as np

  from jaxlm.data.forms import corrupted, framed, row
  from jaxlm.data.special_tokens import SpecialTokens

  ids, rng = SpecialTokens(cls=CLS, bos=BOS, eos=EOS, pad=PAD, mask=MASK), np.random.default_rng(0)
  rows = []
  for _ in range(args.batch_size):
    tokens, types = framed([], rng.integers(0, CLS, length - 2), ids, "insertion")
    whole = row(tokens, types, form="insertion", seq_len=length, pad=PAD)
    rows.append(corrupted(whole, rng, seq_len=length, num_missing=length, pad=PAD))
  return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def dense_objective():
  """The same loss from all logits and a dense target."""
  import jax
  import jax.numpy as jnp

  from jaxlm.objectives.base import LossOutput, Pair
  from jaxlm.objectives.insertion import Insertion, open_slots, stop_nll

  @dataclasses.dataclass(frozen=True)
  class Dense(Insertion):
    def loss(self, model, params, batch, key, state, *, train, bucket=None):
      n_B, segments_BT = batch["num_missing"][:, 0], batch["segment_ids"]
      logits_BTV, stop_B2 = model.apply(
        {"params": params}, batch["tokens"], segments_BT, batch["positions"]
      )
      B, T, V = logits_BTV.shape
      counted_BM = (jnp.arange(batch["slots"].shape[1])[None] < n_B[:, None]).astype(jnp.float32)
      target_BTV = (
        jnp.zeros((B, T, V))
        .at[jnp.arange(B)[:, None], batch["slots"], batch["missing"]]
        .add(counted_BM)
      )
      target_BTV = target_BTV / (n_B[:, None, None] + 1e-9)
      logits_BTV = jnp.where(
        open_slots(segments_BT)[..., None], logits_BTV, jnp.finfo(jnp.float32).min
      )
      log_p_BN = jax.nn.log_softmax(logits_BTV.reshape(B, T * V), axis=1)
      token_B = -jnp.sum(target_BTV.reshape(B, T * V) * log_p_BN, axis=1)
      total_B = token_B + stop_nll(stop_B2, n_B)
      return LossOutput(Pair(jnp.sum(total_B), jnp.asarray(B, jnp.float32)), {})

  return Dense()


def side(args) -> None:
  """One side's process: prints one JSON line."""
  import jax

  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.parallel.place import placer
  from jaxlm.training.config import run_config
  from jaxlm.training.step import build_program

  jax.config.update("jax_compilation_cache_dir", args.cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  cfg = run_config(config(args, args.seq_len))
  if args.side == "dense":
    cfg = dataclasses.replace(cfg, objective=dense_objective())
  mesh = make_mesh(cfg.mesh, jax.devices()[:1])
  batch = batch_of(args, args.seq_len)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  program = build_program(cfg, mesh, batch)
  with program.context():
    if args.compile_only:
      placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
      memory = program.step.lower(program.state, placed, bucket=None).compile().memory_analysis()
      print(json_text.dumps({"temporaries": memory.temp_size_in_bytes}))
      state, batch = program.init(), placer(mesh)(batch)
      jax.block_until_ready(program.step(state, batch, bucket=None))
      return
    state, batch = program.init(), placer(mesh)(batch)
    times, losses = [], []
    for _ in range(args.steps + 1):
      wall, cpu = time.perf_counter(), time.process_time()
      state, metrics, _ = program.step(state, batch, bucket=None)
      losses.append(float(metrics["loss"].sum / metrics["loss"].weight))
      jax.block_until_ready(state)
      times.append((time.perf_counter() - wall, time.process_time() - cpu))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(
    json_text.dumps(
      {
        "wall": [w for w, _ in times[1:]],
        "cpu": [c for _, c in times[1:]],
        "losses": losses,
        "peak": (peak - before) * 1024,
      }
    )
  )


def loss_part(args) -> None:
  flags = [
    f"--{name}={getattr(args, name)}" for name in ("d_model", "batch_size", "seq_len", "steps")
  ]
  with tempfile.TemporaryDirectory() as folder:
    cache = args.cache or folder

    def child(name, *more):
      return json.loads(
        subprocess.run(
          [
            sys.executable,
            os.path.abspath(__file__),
            f"--side={name}",
            f"--cache={cache}",
            *flags,
            *more,
          ],
          capture_output=True,
          text=True,
          check=True,
        ).stdout.splitlines()[-1]
      )

    compiled = {name: child(name, "--compile_only") for name in SIDES}
    if args.compile_only:
      print("compiled")
      return
    runs = {name: [] for name in SIDES}
    for _ in range(args.rounds):
      for name in SIDES:
        runs[name].append(child(name))
  tokens = args.batch_size * args.seq_len
  print(
    f"\ntraining step, vocabulary {VOCAB:,}, length {args.seq_len}, batch {args.batch_size}, d_model {args.d_model}, 4 "
    f"layers, float32; median of {args.rounds} x {args.steps} steps"
  )
  print(
    "| side | tokens/s | tokens per CPU second | peak memory above imports, MB | temporaries of the step, MB | "
    "second step's loss |\n| --- | ---: | ---: | ---: | ---: | ---: |"
  )
  rate = {}
  for name in SIDES:
    wall, cpu = (
      statistics.median(t for r in runs[name] for t in r[key]) for key in ("wall", "cpu")
    )
    peak = max(r["peak"] for r in runs[name])
    rate[name] = wall, peak, compiled[name]["temporaries"]
    print(
      f"| {name} | {tokens / wall:,.0f} | {tokens / cpu:,.0f} | {peak / 1e6:,.0f} | "
      f"{compiled[name]['temporaries'] / 1e6:,.0f} | {runs[name][0]['losses'][1]:.4f} |"
    )
  print(
    f"\nours over dense: speed {rate['dense'][0] / rate['ours'][0]:.2f}x, peak memory "
    f"1/{rate['dense'][1] / rate['ours'][1]:.2f}, temporaries 1/{rate['dense'][2] / rate['ours'][2]:.2f}"
  )


def sampler_part(args) -> None:
  from jaxlm.parallel.cpu import keep_memory

  keep_memory()
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.generation.insertion import (
    BUCKETS,
    FORBIDDEN,
    Filter,
    Inserter,
    InsertionSampling,
    insert,
    run,
  )
  from jaxlm.objectives.insertion import open_slots
  from jaxlm.training.config import run_config

  length, suppressed = args.length, (MASK, EOS, PAD, CLS, BOS)
  model_cfg = run_config(
    config(argparse.Namespace(d_model=args.sampler_width, batch_size=2), length)
  ).model
  inserter = Inserter(
    model_cfg,
    suppressed=suppressed,
    pad=PAD,
    max_len=length,
    max_steps=length - 2,
    stop_threshold=1 - 1e-7,
    sampling=InsertionSampling(Filter(top_k=1), Filter(top_k=1)),
  )
  model = model_cfg.build()
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  prompts, key = [[CLS, BOS]] * args.rows, jax.random.key(1)

  def share(b):
    return 1.0 if args.lengths == "full" else (b + 1) / args.rows

  most = [max(2, round(length * share(b))) for b in range(args.rows)]

  def begin(**more):
    return inserter.start(prompts, most=most, **more)

  @jax.jit
  def dense_step(rows):
    inside_BL = jnp.arange(rows.tokens_BL.shape[1])[None] < rows.length_B[:, None]
    logits_BLV, _ = model.apply({"params": params}, rows.tokens_BL, inside_BL.astype(jnp.int32))
    logits_BLV = logits_BLV.at[..., jnp.asarray(suppressed)].add(FORBIDDEN)
    open_BL = open_slots(inside_BL, rows.blocked_BL)
    slot_B = jnp.argmax(
      jnp.where(open_BL, jax.nn.logsumexp(logits_BLV, axis=-1), FORBIDDEN), axis=1
    )
    token_B = jnp.argmax(
      jnp.take_along_axis(logits_BLV, slot_B[:, None, None], axis=1)[:, 0], axis=-1
    )
    return insert(rows, slot_B, token_B, rows.length_B < rows.most_B)

  def dense():
    rows = begin(buffer=length)
    for _ in range(length - 2):  # the longest row stops last
      rows = dense_step(rows)
    return rows

  sides = {
    "ours, growing buffer": lambda: inserter.generate(params, begin(), key),
    "our loop, full-length buffer": lambda: inserter.generate(params, begin(buffer=length), key),
    "loop of dense passes, full-length buffer": dense,
  }
  sides = {
    name: side
    for name, side in sides.items()
    if not args.two_sides or name != "our loop, full-length buffer"
  }
  if args.compile_only:
    return
  found, times = {}, {name: [] for name in sides}
  jax.block_until_ready(dense_step(begin(buffer=length)))  # compiles
  if (
    args.lengths == "even"
  ):  # batches shrink as rows stop: which programs it takes is known by running
    jax.block_until_ready([sample() for sample in list(sides.values())[:-1]])
  last = jnp.full(
    (), inserter.max_steps - 1, jnp.int32
  )  # strongly typed, as `start` makes it, or all is compiled again
  for size in [*(b for b in BUCKETS if b < length), length] if args.lengths == "full" else ():
    jax.block_until_ready(run(params, begin(buffer=size)._replace(steps=last), key, inserter))
  for _ in range(args.sampler_rounds):
    for name, sample in sides.items():
      start = time.perf_counter(), time.process_time()
      found[name] = jax.block_until_ready(sample())
      times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
  first = next(iter(found.values()))
  equal = []
  for rows in found.values():
    assert rows.length_B.tolist() == most
    equal.append(
      float(
        np.mean(np.asarray(rows.tokens_BL)[:, :length] == np.asarray(first.tokens_BL)[:, :length])
      )
    )
  print(
    f"\nsampling {args.rows} rows until {length} tokens ({args.lengths}), vocabulary {VOCAB:,}, d_model {args.sampler_width}, 4 layers, "
    f"float32; median of {args.sampler_rounds}; same tokens as ours: {', '.join(f'{e:.3f}' for e in equal)}"
  )
  print("| side | seconds | CPU seconds | tokens/s |\n| --- | ---: | ---: | ---: |")
  medians = {name: np.median(t, axis=0) for name, t in times.items()}
  for name, (wall, cpu) in medians.items():
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {(sum(most) - 2 * args.rows) / wall:.1f} |")
  ours = next(iter(medians.values()))
  for name, found in list(medians.items())[1:]:
    print(f"ours over {name}: {found[0] / ours[0]:.2f}x, by CPU time {found[1] / ours[1]:.2f}x")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--part", choices=("loss", "sampler", "both"), default="both")
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--seq_len", type=int, default=128)
  parser.add_argument("--steps", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--length", type=int, default=256, help="of the sampler")
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument(
    "--lengths", choices=("full", "even"), default="full", help="where the sampler's rows stop"
  )
  parser.add_argument(
    "--two_sides", action="store_true", help="without our loop in a full-length buffer"
  )
  parser.add_argument("--sampler_width", type=int, default=128)
  parser.add_argument("--sampler_rounds", type=int, default=1)
  parser.add_argument(
    "--cache", default=None, help="folder of compiled programs; default: a temporary one"
  )
  parser.add_argument("--compile_only", action="store_true", help="fill --cache and end")
  parser.add_argument("--side", choices=SIDES, default=None, help="for the children")
  args = parser.parse_args()
  if args.side:
    side(args)
    return
  import jax

  print(
    f"device {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}, Python "
    f"{sys.version.split()[0]}"
  )
  if args.part in ("loss", "both"):
    loss_part(args)
  if args.part in ("sampler", "both"):
    sampler_part(args)


if __name__ == "__main__":
  main()
