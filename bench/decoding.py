"""Decoding from left to right: against Hugging Face, with refilled rows, with drafts; in one run.

  python bench/decoding.py [--d_model 256] [--layers 6] [--batches 1,8] [--new 128] [--rounds 5] [--no_hf]

Within each comparison the sides take turns, greedily where nothing else is said, from the same weights and
prompts, and their tokens must be the same:

  Hugging Face  generate of the same Llama weights in PyTorch with one thread (extra `bench`)
  continuous    sampled rows of very different lengths: fixed batches against refilled ones
  speculative   the target alone against chains of four drafts from a model of about a sixth of its cost; the
                draft is the target's first layers, so that it agrees often: a bound on what a draft can gain
  dispatch      1 token per dispatch (the host reads each before it asks for the next) against 32

Ratios are of medians over the rounds, by the clock and by the process's CPU time.
"""

import argparse
import dataclasses
import time

import flax.linen as nn
import jax
import numpy as np

from jaxlm.generation.base import Batch, Prompt, row_keys
from jaxlm.generation.engine.continuous import Continuous
from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY, Sampling
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig

VOCAB = 512


def model(d_model: int, layers: int, seed: int = 0):
  mixer = AttentionConfig(max(d_model // 64, 1))
  config = DecoderConfig(VOCAB, d_model, layers, mixer, position=RoPE())
  return config, nn.unbox(jax.jit(lambda: init(config, jax.random.key(seed)))())


def in_turns(sides: dict, rounds: int):
  """{name: (median seconds by the clock, by CPU, what it returned)}; the first turn compiles."""
  wall, cpu, found = {n: [] for n in sides}, {n: [] for n in sides}, {}
  for turn in range(rounds + 1):
    for name, run in sides.items():
      start = time.perf_counter(), time.process_time()
      found[name] = run()
      if turn:
        wall[name].append(time.perf_counter() - start[0])
        cpu[name].append(time.process_time() - start[1])
  return {n: (np.median(wall[n]), np.median(cpu[n]), found[n]) for n in sides}


def same(found: dict) -> None:
  first, *others = (value[2] for value in found.values())
  for other in others:
    assert all(np.array_equal(a, b) for a, b in zip(first, other)), "the tokens differ"


def table(title: str, found: dict, tokens: int) -> tuple[float, float]:
  """Prints the sides; returns how many times faster the last is than the first, by clock and CPU."""
  first, last = next(iter(found.values())), list(found.values())[-1]
  print(f"\n| {title} | tokens/s | times, clock | times, CPU |\n| --- | ---: | ---: | ---: |")
  for name, (wall, cpu, _) in found.items():
    print(f"| {name} | {tokens / wall:,.0f} | {first[0] / wall:.2f} | {first[1] / cpu:.2f} |")
  return first[0] / last[0], first[1] / last[1]


def aims(reached: dict) -> None:
  """reached: comparison -> (clock, CPU, aim or None)."""
  print("\n| times faster | clock | CPU | aim |\n| --- | ---: | ---: | ---: |")
  for name, (wall, cpu, aim) in reached.items():
    print(f"| {name} | {wall:.2f} | {cpu:.2f} | {aim or ''} |")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--layers", type=int, default=6)
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--new", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--no_hf", action="store_true")
  args = parser.parse_args()
  config, params = model(args.d_model, args.layers)
  prompts = np.random.default_rng(0).integers(0, VOCAB, (64, 32)).tolist()
  batches, reached = list(map(int, args.batches.split(","))), {}
  for batch in batches if not args.no_hf else ():
    name = f"the same Llama as Hugging Face, batch {batch}"
    reached[name] = (*against_hugging_face(prompts[:batch], args), {1: 1.2, 8: 1.5}.get(batch))
  reached["refilled rows, ragged lengths"] = (*ragged(config, params, prompts, args), 1.5)
  for batch in batches:
    reached[f"drafts, batch {batch}"] = (*drafts(config, params, prompts, batch, args), None)
  for batch in batches:
    reached[f"32 tokens per dispatch, batch {batch}"] = (
      *dispatches(config, params, prompts, batch, args),
      None,
    )
  aims(reached)


def dispatches(config, params, prompts, batch: int, args):
  sides = {
    f"{n} token{'s' * (n > 1)} per dispatch": lambda n=n: (
      LeftToRight(config, GREEDY, tokens_per_dispatch=n)
      .generate(params, prompts[:batch], args.new)
      .answers
    )
    for n in (1, 32)
  }
  found = in_turns(sides, args.rounds)
  same(found)
  return table(f"dispatch, batch {batch}", found, batch * args.new)


def ragged(config, params, prompts, args):
  """48 answers that end at one of many stops, or at 2 `new` tokens: lengths are geometric with a mean of
  about half of `new`. Sampled at a temperature that makes tokens nearly equally probable; a row draws with its own key
  in both engines.
  """
  room, count = 2 * args.new, 48
  stops = tuple(range(max(VOCAB * 4 // room, 1)))
  free = Sampling(temperature=20.0)
  sides = {
    "fixed batches of 8": LeftToRight(config, free, stops),
    "8 slots, refilled": Continuous(config, free, stops),
  }
  found = in_turns(
    {
      name: lambda engine=engine: (
        engine.generate(params, prompts[:count], room, batch_size=8).answers
      )
      for name, engine in sides.items()
    },
    args.rounds,
  )
  same(found)
  lengths = [len(a) for a in next(iter(found.values()))[2]]
  title = f"{count} answers of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}"
  return table(title, found, int(np.sum(lengths)))


def drafts(config, params, prompts, batch: int, args):
  """The draft is the target's first layer: a sixth of its cost at six layers."""
  draft = dataclasses.replace(config, num_layers=max(args.layers // 6, 1))
  own = params | {"blocks": jax.tree.map(lambda x: x[: draft.num_layers], params["blocks"])}
  both, calls = {"target": params, "draft": own}, {}
  engine = Speculative(config, draft, GREEDY, num_draft=4)

  def speculative():
    keys, room = row_keys(jax.random.key(0), batch), np.full(batch, args.new, np.int32)
    rows, counts = engine.decode_counted(
      both, Batch([Prompt(p) for p in prompts[:batch]], room, keys, None)
    )
    calls["efficiency"] = counts.block_efficiency
    return [row.sequence[row.begin :] for row in rows]

  def alone():
    return LeftToRight(config, GREEDY).generate(params, prompts[:batch], args.new).answers

  found = in_turns({"the target alone": alone, "chains of 4 drafts": speculative}, args.rounds)
  same(found)
  title = f"drafts, batch {batch}: {calls['efficiency']:.2f} tokens per call of the target"
  return table(title, found, batch * args.new)


def against_hugging_face(prompts, args):
  import torch
  import transformers

  from jaxlm.interop.huggingface import import_params, read_config

  torch.manual_seed(0)
  torch.set_num_threads(1)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=VOCAB,
      hidden_size=args.d_model,
      intermediate_size=4 * args.d_model,
      num_hidden_layers=args.layers,
      num_attention_heads=max(args.d_model // 64, 1),
      eos_token_id=None,
      pad_token_id=0,
    )
  ).eval()
  fields = theirs.config.to_diff_dict() | {"architectures": ["LlamaForCausalLM"]}
  config = read_config(fields)
  params = import_params(fields, {k: v.numpy() for k, v in theirs.state_dict().items()}, cfg=config)
  tokens = torch.tensor(prompts)

  def hugging_face():
    with torch.inference_mode():
      out = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=args.new, do_sample=False
      )
    return out[:, tokens.shape[1] :].numpy()

  sides = {
    "Hugging Face generate, 1 thread": hugging_face,
    "jaxlm": lambda: LeftToRight(config, GREEDY).generate(params, prompts, args.new).answers,
  }
  found = in_turns(sides, args.rounds)
  same(found)
  return table(f"the same Llama, batch {len(prompts)}", found, len(prompts) * args.new)


if __name__ == "__main__":
  main()
