"""Decoding from left to right: what several tokens per dispatch, refilled rows and drafts gain, in one run.

  python bench/decoding.py [--d_model 256] [--layers 4] [--batches 1,8] [--new 128] [--rounds 5] [--hf]

Four comparisons; within each the sides take turns, greedily, from the same weights and prompts, and their
tokens must be the same:

  dispatch      1 token per dispatch (the host reads each before it asks for the next) against 32
  continuous    rows of very different lengths: fixed batches against refilled ones
  speculative   the target alone against chains of four drafts from a model of about a sixth of its cost; the
                draft is the target's first layers, so that it agrees often: a bound on what a draft can gain
  --hf          Hugging Face's generate on the same Llama weights, at batch 8 (extra `bench`)
"""

import argparse
import time

import flax.linen as nn
import jax
import numpy as np

from jaxlm.generation.engine.continuous import Continuous
from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
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


def table(title: str, found: dict, tokens: int) -> None:
  first = next(iter(found.values()))
  print(f"\n| {title} | tokens/s | times, clock | times, CPU |\n| --- | ---: | ---: | ---: |")
  for name, (wall, cpu, _) in found.items():
    print(f"| {name} | {tokens / wall:,.0f} | {first[0] / wall:.2f} | {first[1] / cpu:.2f} |")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--layers", type=int, default=6)
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--new", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--hf", action="store_true")
  args = parser.parse_args()
  config, params = model(args.d_model, args.layers)
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB, (64, 32)).tolist()
  for batch in map(int, args.batches.split(",")):
    sides = {
      f"{n} tokens per dispatch": lambda n=n, batch=batch: (
        LeftToRight(config, GREEDY, tokens_per_dispatch=n)
        .generate(params, prompts[:batch], args.new)
        .answers
      )
      for n in (1, 32)
    }
    found = in_turns(sides, args.rounds)
    same(found)
    table(f"dispatch, batch {batch}", found, batch * args.new)
  ragged(config, params, prompts, args)
  drafts(config, params, prompts, args)
  if args.hf:
    against_hugging_face(prompts, args)


def ragged(config, params, prompts, args):
  """32 prompts whose answers end at a stop: some soon, some late."""
  free = LeftToRight(config, GREEDY).generate(params, prompts[:32], args.new).answers
  counts = np.bincount(np.concatenate(free), minlength=VOCAB)
  # Stops that end answers at very different places: ids that about half of the rows never meet.
  met = np.array([sum(int(v in row) for row in free) for v in range(VOCAB)])
  stops = tuple(int(v) for v in np.argsort(np.abs(met - 16) + (counts == 0) * VOCAB)[:1])
  sides = {
    "fixed batches of 8": lambda: (
      LeftToRight(config, GREEDY, stops)
      .generate(params, prompts[:32], args.new, batch_size=8)
      .answers
    ),
    "8 slots, refilled": lambda: (
      Continuous(config, GREEDY, stops)
      .generate(params, prompts[:32], args.new, batch_size=8)
      .answers
    ),
  }
  found = in_turns(sides, args.rounds)
  same(found)
  lengths = [len(a) for a in next(iter(found.values()))[2]]
  print(f"\nanswers of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}")
  table("ragged lengths", found, int(np.sum(lengths)))


def drafts(config, params, prompts, args):
  """The draft is the target's first layer: a sixth of its cost at six layers."""
  import dataclasses

  draft = dataclasses.replace(config, num_layers=max(args.layers // 6, 1))
  own = params | {"blocks": jax.tree.map(lambda x: x[: draft.num_layers], params["blocks"])}
  both = {"target": params, "draft": own}
  for batch in map(int, args.batches.split(",")):
    engine = Speculative(config, draft, GREEDY, num_draft=4)
    calls = {}

    def speculative(batch=batch, engine=engine, calls=calls):
      from jaxlm.generation.base import Batch, Prompt, row_keys

      keys = row_keys(jax.random.key(0), batch)
      room = np.full(batch, args.new, np.int32)
      rows, counts = engine.decode_counted(
        both, Batch([Prompt(p) for p in prompts[:batch]], room, keys, None)
      )
      calls["efficiency"] = counts.block_efficiency
      return [row.sequence[row.begin :] for row in rows]

    sides = {
      "the target alone": lambda batch=batch: (
        LeftToRight(config, GREEDY).generate(params, prompts[:batch], args.new).answers
      ),
      "chains of 4 drafts": speculative,
    }
    found = in_turns(sides, args.rounds)
    same(found)
    print(f"\ntokens per call of the target: {calls['efficiency']:.2f}")
    table(f"speculative, batch {batch}", found, batch * args.new)


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
  tokens = torch.tensor(prompts[:8])

  def hugging_face():
    with torch.inference_mode():
      out = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=args.new, do_sample=False
      )
    return out[:, tokens.shape[1] :].numpy()

  sides = {
    "Hugging Face generate, 1 thread": hugging_face,
    "jaxlm": lambda: LeftToRight(config, GREEDY).generate(params, prompts[:8], args.new).answers,
  }
  found = in_turns(sides, args.rounds)
  same(found)
  table("the same Llama, batch 8", found, 8 * args.new)


if __name__ == "__main__":
  main()
