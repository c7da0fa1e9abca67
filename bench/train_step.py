r"""One training step (forward, backward, global-norm clip, AdamW) of ours against PyTorch, and
CARoPE against RoPE.

  python bench/train_step.py                           # or: make bench
  python bench/train_step.py --shape wide --dtype bfloat16 --side jax-rope --side torch-eager
  python bench/train_step.py --shape base --d_model 512 --num_layers 6 --seq_len 512

Same shapes, same dtype, same number of parameters, the same settings of the C allocator; our model
has its default settings, the loop over layers included. Three shapes in float32, and the middle one
in bfloat16 where the CPU has instructions for it. Every side lives in its own process, so that its
peak memory is its own; rounds alternate between the sides, so that a busy machine is unfair to
none. Reported: the median over rounds of tokens per second, the range, tokens per second of CPU
time (what a busy machine changes least), and the peak resident memory above what the process held
after its imports. Programs are compiled by a process that ends before (the time of its first step
is reported), so that no peak is a compiler's. Ratios are of the two sides in one round.
Sides: jax-rope, jax-carope (the library's own train step), torch-eager, torch-compile (the decoder
written out below). `--side jax-rope --side jax-rope-unguarded` measures what the check of the
update costs; `--json` keeps the numbers.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from jaxlm import json_text
from jaxlm.parallel.cpu import keep_memory

SIDES = ("jax-rope", "jax-carope", "torch-eager", "torch-compile")
#: The step without the check that its update is finite: only when it is asked for.
UNGUARDED = "jax-rope-unguarded"


@dataclasses.dataclass(frozen=True)
class Shape:
  """A GPT-2 style decoder: LayerNorm, GELU, tied output, rotary positions over the whole head."""

  d_model: int = 256
  num_layers: int = 4
  num_heads: int = 4
  vocab_size: int = 4096
  seq_len: int = 256
  batch_size: int = 8
  dtype: str = "float32"


SHAPES = {
  "small": Shape(d_model=128, num_layers=2, num_heads=2, batch_size=8, seq_len=128),
  "base": Shape(),
  "wide": Shape(d_model=512, num_heads=8, batch_size=2),
}


# ----------------------------------------------------------------------------------------------
# PyTorch's side


def torch_step(shape: Shape, compiled: bool):
  """() -> loss of one step of a plain PyTorch decoder; fused attention and fused AdamW, as its
  users write it.
  """
  import torch
  import torch.nn.functional as F
  from torch import nn

  torch.manual_seed(0)
  head_dim = shape.d_model // shape.num_heads
  angle = torch.outer(
    torch.arange(shape.seq_len), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
  )
  cos, sin = angle.cos(), angle.sin()

  def rotate(x):
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm, self.mlp_norm = nn.LayerNorm(shape.d_model), nn.LayerNorm(shape.d_model)
      self.qkv = nn.Linear(shape.d_model, 3 * shape.d_model)
      self.out = nn.Linear(shape.d_model, shape.d_model)
      self.up, self.down = (
        nn.Linear(shape.d_model, 4 * shape.d_model),
        nn.Linear(4 * shape.d_model, shape.d_model),
      )

    def forward(self, x):
      def heads(y):
        return y.unflatten(-1, (shape.num_heads, head_dim)).transpose(1, 2)

      q, k, v = map(heads, self.qkv(self.norm(x)).chunk(3, -1))
      y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).flatten(2))
      return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))

  class Decoder(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
      self.blocks = nn.ModuleList(Block() for _ in range(shape.num_layers))
      self.norm = nn.LayerNorm(shape.d_model)
      for p in self.parameters():
        if p.ndim > 1:
          nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
      x = self.embed(tokens)
      for block in self.blocks:
        x = block(x)
      logits = self.norm(x) @ self.embed.weight.T
      return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

  model = Decoder()
  loss_fn = torch.compile(model) if compiled else model
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )
  text = torch.randint(shape.vocab_size, (shape.batch_size, shape.seq_len + 1))
  tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()

  def step() -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=shape.dtype == "bfloat16"):
      loss = loss_fn(tokens, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  return step, sum(p.numel() for p in model.parameters())


# -----------------------------------------------------------------------------------------------------
# our side


def jax_step(shape: Shape, position: str):
  """() -> loss of one step: the very program that `jaxlm train` runs, batch on the device as it is
  there.
  """
  import jax
  import numpy as np

  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.parallel.place import placer
  from jaxlm.training.config import run_config
  from jaxlm.training.step import build_program

  cfg = run_config(
    dict(
      model=dict(
        kind="decoder",
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        num_layers=shape.num_layers,
        mixer=dict(kind="attention", num_heads=shape.num_heads, use_bias=True),
        mlp=dict(activation="gelu_tanh", use_bias=True),
        norm=dict(kind="layer"),
        position=position,
        dtype=shape.dtype,
      ),
      objective=dict(kind="next_token"),
      data=dict(
        kind="text",
        source="mini:en",
        tokenizer=dict(kind="bytes", separator=254),
        seq_len=shape.seq_len,
        batch_size=shape.batch_size,
      ),
      optimizer=dict(
        kind="adamw", learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
      ),
      schedule=dict(kind="constant"),
      train=dict(steps=1_000_000),
    )
  )
  text = np.random.default_rng(0).integers(
    0, shape.vocab_size, (shape.batch_size, shape.seq_len + 1), np.int32
  )
  batch = dict(
    tokens=text[:, :-1],
    targets=text[:, 1:],
    segment_ids=np.ones_like(text[:, 1:]),
    positions=np.broadcast_to(
      np.arange(shape.seq_len, dtype=np.int32), (shape.batch_size, shape.seq_len)
    ),
    loss_weights=np.ones((shape.batch_size, shape.seq_len), np.float32),
  )
  mesh = make_mesh(cfg.mesh)
  program, batch = build_program(cfg, mesh, batch), placer(mesh)(batch)
  with program.context():
    state = program.init()

  def step() -> float:
    nonlocal state
    with program.context():
      state, metrics, _ = program.step(state, batch)
    return float(metrics["loss"].mean())

  return step, sum(leaf.size for leaf in jax.tree.leaves(state.params))


# -------------------------------------------------------------------------------------------
# processes and rounds


def worker(side: str, shape: Shape) -> None:
  """Answers each line `n` on stdin with one JSON line: seconds for n steps, the last loss, peak
  memory so far.
  """
  keep_memory()  # as `jaxlm train` does; the same for every side
  if side.startswith("torch"):
    import torch

    torch.set_num_threads(_cores())
    before = _peak_bytes()
    step, num_params = torch_step(shape, compiled=side == "torch-compile")
  else:
    import jax.numpy as jnp

    jnp.zeros(1).block_until_ready()
    import jaxlm.training  # noqa: F401

    before = _peak_bytes()
    if side == UNGUARDED:
      import jaxlm.training.step

      jaxlm.training.step.all_sane = lambda params, others: jnp.array(True)
    step, num_params = jax_step(shape, side.removeprefix("jax-").removesuffix("-unguarded"))
  start = time.perf_counter()
  loss = step()
  print(
    json_text.dumps(
      {"num_params": num_params, "first_step_s": time.perf_counter() - start, "loss": loss}
    ),
    flush=True,
  )
  for line in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
      loss = step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
      json_text.dumps(
        {"seconds": seconds, "cpu_s": cpu, "loss": loss, "peak_bytes": _peak_bytes() - before}
      ),
      flush=True,
    )


def measure(sides, shape: Shape, rounds: int, steps: int) -> dict:
  """side -> tokens_per_s of each round, peak bytes, parameters, or the reason why it did not run."""
  here = [sys.executable, os.path.abspath(__file__), "--worker"]
  arguments = [f"--{k}={v}" for k, v in dataclasses.asdict(shape).items()]
  processes, out = {}, {}
  with tempfile.TemporaryDirectory() as cache:
    environment = {
      **os.environ,
      "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "TORCHINDUCTOR_CACHE_DIR": cache,
    }

    def start(side):
      return subprocess.Popen(
        [*here, side, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
      )

    try:
      for (
        side
      ) in sides:  # one after the other: one side's compiler must not disturb another's first step
        first = start(side)
        out[side] = _answer(first) or {
          "error": "ended before its first step; run with --worker to see why"
        }
        first.stdin.close()
        first.wait()
        if "error" not in out[side]:
          processes[side] = start(side)
          _answer(processes[side])
          out[side] |= {"tokens_per_s": [], "tokens_per_cpu_s": []}
      _rounds(processes, out, shape, rounds, steps)
    finally:
      for process in processes.values():
        process.stdin.close()
        process.wait()
  return out


def _rounds(processes, out, shape: Shape, rounds: int, steps: int) -> None:
  for n in range(rounds):
    for side in list(processes)[:: 1 if n % 2 == 0 else -1]:
      process = processes[side]
      process.stdin.write(f"{steps}\n")
      process.stdin.flush()
      result = _answer(process)
      if result is None:
        out[side] = {"error": f"ended with code {process.wait()} in round {n}"}
        del processes[side]
        continue
      tokens = steps * shape.batch_size * shape.seq_len
      out[side]["tokens_per_s"].append(tokens / result["seconds"])
      out[side]["tokens_per_cpu_s"].append(tokens / result["cpu_s"])
      out[side]["peak_bytes"] = result["peak_bytes"]


def report(results: dict[str, dict]) -> str:
  """Markdown: a table of the sides of every shape, and one of the ratios."""
  lines = [
    "| shape | side | parameters | tokens/s, median | range | tokens per CPU second | peak memory above imports, MB | first step, s |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
  ]
  ratios = [
    "| shape | ratio | median | range | by CPU time | range | peak memory |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  for name, sides in results.items():
    for side, m in sides.items():
      if "error" in m:
        lines.append(f"| {name} | {side} | | {m['error']} | | | | |")
        continue
      rates = m["tokens_per_s"]
      lines.append(
        f"| {name} | {side} | {m['num_params']:,} | {statistics.median(rates):,.0f} "
        f"| {min(rates):,.0f} to {max(rates):,.0f} | {statistics.median(m['tokens_per_cpu_s']):,.0f} "
        f"| {m['peak_bytes'] / 1e6:,.0f} | {m['first_step_s']:.1f} |"
      )
    for over, under, what in (
      ("jax-rope", "torch-eager", "ours over eager PyTorch"),
      ("jax-rope", "torch-compile", "ours over compiled PyTorch"),
      ("jax-carope", "jax-rope", "CARoPE over RoPE"),
      ("jax-rope", UNGUARDED, "with the check of the update over without"),
    ):
      if all("tokens_per_s" in sides.get(side, ()) for side in (over, under)):
        wall, cpu = (
          [a / b for a, b in zip(sides[over][key], sides[under][key])]
          for key in ("tokens_per_s", "tokens_per_cpu_s")
        )
        ratios.append(
          f"| {name} | {what} | {statistics.median(wall):.2f} | {min(wall):.2f} to {max(wall):.2f} "
          f"| {statistics.median(cpu):.2f} | {min(cpu):.2f} to {max(cpu):.2f} "
          f"| {sides[over]['peak_bytes'] / sides[under]['peak_bytes']:.2f} |"
        )
  return "\n".join(
    [*lines, "", "Tokens per second, and peak memory, of the one over the other:", "", *ratios]
  )


def environment() -> str:
  from importlib import metadata

  versions = {}
  for name in ("jax", "jaxlib", "torch"):
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      pass
  try:
    cpu = next(
      line.split(":", 1)[1].strip()
      for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith("model name")
    )
  except (OSError, StopIteration):
    cpu = "CPU"
  load = f", load average before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
  return (
    f"{cpu}, {_cores()} cores{load}; Python {sys.version.split()[0]}, "
    + ", ".join(f"{k} {v}" for k, v in versions.items())
    + f"; {time.strftime('%Y-%m-%d')}"
  )


def _answer(process):
  line = process.stdout.readline()
  while line and not line.startswith("{"):
    line = process.stdout.readline()
  return json_text.number(json.loads(line)) if line else None


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def cpu_has_bfloat16() -> bool:
  try:
    return "_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return False


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
  for field in dataclasses.fields(Shape):
    parser.add_argument(f"--{field.name}", type=type(field.default), help="default: the shape's")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=4, help="steps per round")
  parser.add_argument(
    "--side",
    action="append",
    choices=(*SIDES, UNGUARDED),
    help="only these; default: all but the unguarded one",
  )
  parser.add_argument(
    "--json", type=pathlib.Path, help="keep the numbers of every round in this file"
  )
  parser.add_argument("--worker", choices=(*SIDES, UNGUARDED), help=argparse.SUPPRESS)
  args = parser.parse_args()
  given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)}
  given = {name: value for name, value in given.items() if value is not None}
  if args.worker:
    worker(args.worker, Shape(**given))
    return
  from jaxlm.training.provenance import revision

  machine, at = environment(), revision()
  shapes = {n: dataclasses.replace(SHAPES[n], **given) for n in args.shape or SHAPES}
  if args.dtype is None and args.shape is None and cpu_has_bfloat16():
    shapes["base, bfloat16"] = dataclasses.replace(shapes["base"], dtype="bfloat16")
  for name, shape in shapes.items():
    print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(shape).items()))
  results = {
    name: measure(args.side or SIDES, shape, args.rounds, args.steps)
    for name, shape in shapes.items()
  }
  print(f"{args.rounds} rounds of {args.steps} steps\n\n{report(results)}")
  if args.json:
    args.json.write_text(
      json_text.dumps(
        {
          "revision": at,
          "machine": machine,
          "shapes": {name: dataclasses.asdict(shape) for name, shape in shapes.items()},
          "rounds": args.rounds,
          "steps": args.steps,
          "sides": results,
        },
        indent=1,
      )
      + "\n"
    )
  load = f", after {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
  print(
    f"\n    {' '.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]])}\n\n{machine}{load}"
  )


if __name__ == "__main__":
  main()
