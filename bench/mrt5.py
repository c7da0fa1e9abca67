r"""MrT5's hard deletion at the shape of ByT5-small: the same weights undeleted, with half and with
a quarter of the tokens.

  python bench/mrt5.py                   # CPU times, compiled FLOPs and memory; with Hugging Face's T5 beside it
  python bench/mrt5.py --tpu v5e:2x2     # compile-time report for one chip of a slice, without having it
  python bench/mrt5.py --waste runs/mrt5-span/smoke/mrt5_50/seed0      # slots against kept tokens, of a trained model

One process, rounds alternate between the sides. 'undeleted' is the plain T5; the gated model has
its weights and a gate whose threshold lies where it must for the share that is asked for. Hugging
Face: transformers' T5ForConditionalGeneration, eager, float32, the same weights; all sides may use
all cores that the process may.
"""

import argparse
import dataclasses
import os
import time

import numpy as np

KEPT = (0.5, 0.25)


def shape(small: bool):
  """(config, L, T). Weights as from scratch: at factor 1 a random T5 of 12 layers is chaotic, and
  its logits say nothing.
  """
  from jaxlm.models.encoder_decoder import EncoderDecoderConfig

  if small:
    return (
      EncoderDecoderConfig(
        d_model=64, d_ff=128, num_heads=2, d_kv=32, num_encoder_layers=4, num_decoder_layers=2
      ),
      128,
      27,
    )
  return EncoderDecoderConfig(), 1024, 189


def back_of(model):
  """(h, gate, decoder tokens) -> logits of what stands behind the gate: compaction, encoder layers,
  decoder, head.
  """
  import jax

  from jaxlm.layers.delete_gate import Mode, apply_gate
  from jaxlm.layers.t5 import Keys

  def encoder(params, h_BLD, gate_BL, threshold, capacity):
    valid_BL = gate_BL > -1e9

    def run(module):
      reduced = apply_gate(
        h_BLD, gate_BL, valid_BL, threshold, Mode(True, capacity), compact_positions=False
      )
      return module.encode_back(h_BLD, Keys(valid_BL), reduced).h_BCD

    return model.apply({"params": params}, method=run)

  return jax.jit(encoder, static_argnames="capacity")


def compiled_cost(compiled):
  """Matmul FLOPs with loops counted as often as they run, and the compiler's bytes of temporaries."""
  from jaxlm.preflight import hlo
  from jaxlm.preflight.cost import cost
  from jaxlm.preflight.loops import Loops

  loops = Loops(hlo.parse(compiled.as_text()))
  return cost(loops), compiled.memory_analysis().temp_size_in_bytes, loops.unknown


def hugging_face(cfg, params):
  """Their model with our weights."""
  import torch
  from transformers import T5Config, T5ForConditionalGeneration

  from jaxlm.interop.mrt5 import ALIASES, store_params

  theirs = T5Config(
    vocab_size=cfg.vocab_size,
    d_model=cfg.d_model,
    d_ff=cfg.d_ff,
    d_kv=cfg.d_kv,
    num_heads=cfg.num_heads,
    num_layers=cfg.num_encoder_layers,
    num_decoder_layers=cfg.num_decoder_layers,
    dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    decoder_start_token_id=0,
  )
  model = T5ForConditionalGeneration(theirs).eval()
  model.lm_head = torch.nn.Linear(
    cfg.d_model, cfg.vocab_size, bias=False
  )  # version 5 ties it whatever the config says
  state = {k: torch.from_numpy(np.array(v)) for k, v in store_params(cfg, params).items()}
  state |= {alias: state["shared.weight"] for alias in ALIASES}
  model.load_state_dict(state)
  return model


def timed(fn):
  wall, cpu = time.perf_counter(), time.process_time()
  fn()
  return time.perf_counter() - wall, time.process_time() - cpu


def say(text: str) -> None:
  print(text, flush=True)


def cpu_report(args):
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import torch

  from jaxlm.evaluation.flops import dot_flops
  from jaxlm.generation.hard_deletion import TwoPrograms
  from jaxlm.interop.mrt5 import add_gate
  from jaxlm.layers.delete_gate import DeleteGateConfig
  from jaxlm.models.encoder_decoder import forward_flops, layer_flops

  cfg, L, T = shape(args.small)
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 259, (args.batch_size, L)).astype(np.int32)
  decoder = rng.integers(3, 259, (args.batch_size, T)).astype(np.int32)
  plain = cfg.build()
  params = nn.unbox(jax.jit(plain.init)(jax.random.key(0), tokens[:, :8], decoder[:, :8]))["params"]
  gate_cfg, split = add_gate(cfg, params, DeleteGateConfig(layer=3))
  gate = gate_cfg.build()
  cores = len(os.sched_getaffinity(0))
  say(
    f"device {jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}, torch {torch.__version__}, float32; "
    f"d_model {cfg.d_model}, {cfg.num_encoder_layers} + {cfg.num_decoder_layers} layers, gate at block 3, inputs {L}, targets {T}, "
    f"batch {args.batch_size}, {sum(x.size for x in jax.tree.leaves(params)) / 1e6:.0f} M parameters"
  )
  whole = jax.jit(lambda p, a, b: plain.apply({"params": p}, a, b))

  def run_plain():
    return jax.block_until_ready(whole(params, tokens, decoder))

  want = run_plain()

  sides, programs = {"undeleted": run_plain}, TwoPrograms(gate, split, multiple=1)
  gates = np.asarray(programs.front(tokens).gate_BL)
  thresholds = {kept: float(np.quantile(gates, 1 - kept)) for kept in KEPT}
  # One program per share: a threshold of its own keeps that share of the positions.
  for kept, threshold in thresholds.items():
    two = TwoPrograms(gate, split, multiple=args.multiple)
    two.threshold = threshold

    def side(two=two):
      return jax.block_until_ready(two(tokens, decoder)[0])

    side()
    sides[f"{100 * (1 - kept):.0f} % deleted"] = side
  if not args.no_torch:
    torch.set_num_threads(cores)
    model = hugging_face(cfg, params)
    ids, dec = torch.from_numpy(tokens).long(), torch.from_numpy(decoder).long()

    def run_torch():
      with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=dec, use_cache=False).logits

    say(
      f"Hugging Face logits differ by at most {np.abs(run_torch().numpy() - np.asarray(want)).max():.1e} "
      f"(of {np.abs(np.asarray(want)).max():.1f})"
    )
    sides["Hugging Face, undeleted"] = run_torch

  times = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, fn in sides.items():
      times[name].append(timed(fn))
  base = np.median(times["undeleted"], axis=0)
  print(f"\nforward pass, encoder and decoder, median of {args.rounds} rounds\n")
  print(
    "| side | wall ms | range | CPU ms | undeleted over it, wall | CPU | formula |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
  )
  for name, values in times.items():
    wall, cpu = np.median(values, axis=0)
    low, high = min(v[0] for v in values), max(v[0] for v in values)
    kept = next((k for k in KEPT if name.startswith(f"{100 * (1 - k):.0f} %")), 1.0)
    ideal = forward_flops(gate.cfg, L, T) / forward_flops(gate.cfg, L, T, round(kept * L))
    print(
      f"| {name} | {1e3 * wall:.0f} | {1e3 * low:.0f} to {1e3 * high:.0f} | {1e3 * cpu:.0f} | {base[0] / wall:.2f} | "
      f"{base[1] / cpu:.2f} | {ideal:.2f} |"
    )

  print(
    "\nlayers behind the gate (9 encoder layers), relative to full length\n"
    if not args.small
    else "\nlayers behind the gate\n"
  )
  print(
    "| slots | FLOPs of the dots | ideal | ratio | temporaries, MB |\n| ---: | ---: | ---: | ---: | ---: |"
  )
  back, h = back_of(gate), jax.ShapeDtypeStruct((args.batch_size, L, cfg.d_model), jnp.float32)
  gate_shape, found = jax.ShapeDtypeStruct((args.batch_size, L), jnp.float32), {}
  for capacity in (L, *(round(k * L) for k in KEPT)):
    flops = dot_flops(
      lambda p, h, g, c=capacity: back(p, h, g, -15.0, capacity=c), split, h, gate_shape
    )
    temp = (
      back.lower(split, h, gate_shape, -15.0, capacity=capacity)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )
    found[capacity] = flops
    ideal = layer_flops(cfg, capacity) / layer_flops(cfg, L)
    print(
      f"| {capacity} | {flops / found[L]:.4f} | {ideal:.4f} | {flops / found[L] / ideal:.3f} | {temp / 1e6:.0f} |",
      flush=True,
    )


def tpu_report(args):
  """Encoder layers behind the gate, compiled for one chip in bfloat16."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from jaxlm.layers.delete_gate import DeleteGateConfig
  from jaxlm.models.encoder_decoder import layer_flops
  from jaxlm.preflight.chips import chip_of
  from jaxlm.preflight.topology import devices

  cfg, L, T = shape(args.small)
  cfg = dataclasses.replace(cfg, reduction=DeleteGateConfig(layer=3), dtype="bfloat16")
  model, chip = cfg.build(), chip_of(args.tpu)
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  import flax.linen as nn

  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens))["params"]
  mesh = Mesh(
    devices(args.tpu)[:1].reshape(1, 1, 1, 1),
    ("data", "fsdp", "sequence", "tensor"),
    axis_types=(AxisType.Auto,) * 4,
  )

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec()))

  params = jax.tree.map(place, params)
  B = args.batch_size
  h, gate = (
    place(jax.ShapeDtypeStruct((B, L, cfg.d_model), jnp.bfloat16)),
    place(jax.ShapeDtypeStruct((B, L), jnp.float32)),
  )
  back, first = back_of(model), None
  print(
    f"{args.tpu}, one chip ({chip.device_kind}), jax {jax.__version__}, bfloat16, batch {B}, length {L}: compaction and the "
    f"{cfg.num_encoder_layers - 3} encoder layers behind the gate\n"
  )
  print(
    "| slots | matmul TFLOP | of full | ideal | compiler's cycles | of full | temporaries, MiB | compile s |"
  )
  print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
  for capacity in (L, *(round(k * L) for k in KEPT)):
    start = time.perf_counter()
    with jax.set_mesh(mesh):
      compiled = back.lower(params, h, gate, -15.0, capacity=capacity).compile()
    total, temp, unknown = compiled_cost(compiled)
    cycles = sum(w.cycles * w.count for w in total.work)
    first = first or (total.flops, cycles)
    ideal = layer_flops(cfg, capacity) / layer_flops(cfg, L)
    print(
      f"| {capacity} | {total.flops / 1e12:.3f} | {total.flops / first[0]:.4f} | {ideal:.4f} | {cycles / 1e6:.2f} M | "
      f"{cycles / first[1]:.3f} | {temp / 2**20:.1f} | {time.perf_counter() - start:.0f} |"
      + (f" (loops without a count: {unknown})" if unknown else ""),
      flush=True,
    )


def waste_report(args):
  """Slots that a trained model's kept tokens occupy: batches as they come, sorted, rows that share
  buffers.
  """
  import jax

  from jaxlm.checkpoint.opening import open_model
  from jaxlm.generation.hard_deletion import TwoPrograms, slots
  from jaxlm.training.config import run_config

  opened = open_model(args.waste)
  config, params = opened.run, opened.params
  cfg = run_config(config)
  two = TwoPrograms(cfg.model.build(), params, multiple=1)
  counts, lengths = [], []
  for batch in cfg.data.build("validation", seed=cfg.seed, repeat=False):
    counts.append(np.asarray(two.front(batch["tokens"]).count_B))
    lengths.append((batch["tokens"] != 0).sum(1))
  counts, length = np.concatenate(counts), cfg.data.seq_len
  print(
    f"{len(counts)} rows of {length} tokens: kept {counts.mean():.1f} on average, {counts.min()} to {counts.max()}, "
    f"standard deviation {counts.std():.1f}; jax {jax.__version__}\n"
  )
  print(
    "| batch | as they come | sorted pool | 4 rows share a buffer | (slots per kept token, capacity a multiple of 1 / of 8) |\n"
    "| ---: | ---: | ---: | ---: | --- |"
  )
  for batch_size in (8, 16, 32, 128):
    used = len(counts) // batch_size * batch_size
    if used:
      cells = [
        " / ".join(
          f"{slots(counts, batch_size, length, how, multiple=m) / counts[:used].sum():.3f}"
          for m in (1, 8)
        )
        for how in ("batch", "sorted", "joined")
      ]
      print(f"| {batch_size} | {' | '.join(cells)} | |")

  pool, batch_size = 128, 32
  data = cfg.data.build("validation", seed=cfg.seed, repeat=False)
  rows = [
    (np.asarray(b["tokens"]), np.asarray(b["decoder_tokens"]))
    for b, _ in zip(data, range(-(-pool // cfg.data.batch_size)))
  ]
  tokens, decoder = (np.concatenate(x)[:pool] for x in zip(*rows))
  front = two.front(tokens)

  def take(order):
    return jax.tree.map(lambda x: x[order], front)

  order = {
    "as they come": np.arange(pool),
    "sorted": np.argsort(np.asarray(front.count_B), kind="stable"),
  }
  sides = {}
  for name, rows_per_buffer, how in (
    ("as they come", 1, "as they come"),
    ("sorted pool", 1, "sorted"),
    ("4 rows share a buffer", 4, "as they come"),
    ("undeleted width", 1, "as they come"),
  ):
    programs = TwoPrograms(cfg.model.build(), params, rows=rows_per_buffer, multiple=8)
    groups = [order[how][i : i + batch_size] for i in range(0, pool, batch_size)]
    capacities = [
      length if name == "undeleted width" else programs.capacity(counts_of, length)
      for counts_of in (np.asarray(front.count_B)[g] for g in groups)
    ]
    work = [(take(g), decoder[g], c) for g, c in zip(groups, capacities)]

    def side(programs=programs, work=work):
      jax.block_until_ready([programs.logits(f, d, capacity=c) for f, d, c in work])

    side()
    sides[name] = (side, sum(c * batch_size // rows_per_buffer for c in capacities))
  times = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, (side, _) in sides.items():
      times[name].append(timed(side))
  print(
    f"\nwhat stands behind the gate, {pool} rows in batches of {batch_size}, capacities multiples of 8, median of {args.rounds} rounds\n"
  )
  print("| batches | slots | CPU ms | of undeleted |\n| --- | ---: | ---: | ---: |")
  base = np.median(times["undeleted width"], axis=0)[1]
  for name, values in times.items():
    cpu = np.median(values, axis=0)[1]
    print(f"| {name} | {sides[name][1]} | {1e3 * cpu:.1f} | {cpu / base:.2f} |")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--batch_size", type=int, default=1)
  parser.add_argument("--multiple", type=int, default=64, help="capacities are rounded up to it")
  parser.add_argument("--small", action="store_true", help="a miniature, to try the script")
  parser.add_argument("--no_torch", action="store_true")
  parser.add_argument("--tpu", metavar="TOPOLOGY")
  parser.add_argument("--waste", metavar="RUN")
  args = parser.parse_args()
  (tpu_report if args.tpu else waste_report if args.waste else cpu_report)(args)


if __name__ == "__main__":
  main()
