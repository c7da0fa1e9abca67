"""`jaxlm generate` of models whose data have a form: a sentence that grows by insertions, before
one's eyes.

Prompts of text are text; a gap of three underscores or more ("a ___ that lives in ____") is where
insertions may go, a prompt without a gap is continued at its end. Prompts of tasks are token
numbers between blanks.
"""

import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.data.forms import framed, prompt
from jaxlm.generation.answers import Answering
from jaxlm.generation.insertion import Filter, InsertionSampling

GAP = re.compile(r"_{3,}")


class Frame(NamedTuple):
  """tokens as the model begins; closed: slots that stay closed; length: tokens to be filled in by
  masked diffusion.
  """

  tokens: list[int]
  closed: list[bool]
  length: int


def generate(cfg, params, args, sampling) -> int:
  """Prints what a run of `cfg.data.form` generates; args of `jaxlm generate`, sampling for models
  from left to right.
  """
  form, data = cfg.data.form, cfg.data
  if args.stop_threshold is not None and not 0 < args.stop_threshold < 1:
    raise ConfigError(f"--stop_threshold={args.stop_threshold}: wanted a probability inside (0, 1)")
  frames = [
    frame(data, text, args.max_new_tokens, cfg.seed)
    for text in (args.prompt or [""])
    for _ in range(args.num_samples)
  ]
  most = max(len(f.tokens) for f in frames) + args.max_new_tokens
  answering = Answering(
    max_len=min(most, cfg.model.max_len or most),
    batch_size=len(frames),
    insertion=insertion_sampling(args),
    causal=sampling,
    stop_threshold=args.stop_threshold or 0.9,
    seed=args.seed,
  )
  if form.startswith("insertion") and len(frames) == 1 and not args.json:
    return _grow(cfg, params, answering, frames[0])
  start = time.perf_counter()
  found = answering.answer(
    cfg.model,
    params,
    form,
    data.special_tokens,
    [f.tokens for f in frames],
    [f.length for f in frames],
    closed=[f.closed for f in frames],
  )
  seconds = time.perf_counter() - start
  say = speaker(data)
  for sequence in found.sequences:
    text = say(sequence)
    print(json_text.dumps({"text": text}) if args.json else f"{text}\n{'-' * 40}")
  print(
    _speed(found.new_tokens, found.passes, found.tokens_per_pass, seconds, "compilation included"),
    file=sys.stderr,
  )
  return 0


def insertion_sampling(args) -> InsertionSampling:
  """--temperature 0 is greedy; --top_k and --top_p are of the token, --slot_top_k and --slot_top_p
  of the slot.
  """
  if args.temperature == 0:
    return InsertionSampling(Filter(top_k=1), Filter(top_k=1))
  if args.temperature not in (None, 1.0):
    raise ConfigError(
      f"--temperature={args.temperature}: insertion draws from the model's own distribution (1) or takes "
      f"the best (0); sharpen it with --top_k, --top_p, --slot_top_k or --slot_top_p"
    )
  return InsertionSampling(Filter(args.top_k, args.top_p), Filter(args.slot_top_k, args.slot_top_p))


def frame(data, text: str, max_new_tokens: int, seed: int = 0) -> Frame:
  """seed: of the run, whose test problems a task without a prompt reads."""
  if not data.has_text:
    return _task_frame(data, text, seed)
  tokenizer = data.load_tokenizer()
  pieces = [
    tokenizer.encode(piece.strip() if i == 0 else piece.rstrip()).tolist() if piece.strip() else []
    for i, piece in enumerate(GAP.split(text))
  ]
  if len(pieces) > 1 and not data.form.startswith("insertion"):
    raise ConfigError(
      f"--prompt {text!r} has a gap, which only insertion models fill without being told its length; this "
      f"run's form is {data.form!r}"
    )
  given, _ = framed([], sum(pieces, []), data.special_tokens, data.form)
  given = given[:-1] if data.form == "causal" else given
  closed, at = [True] * len(given), len(given) - sum(map(len, pieces)) - 1
  for piece in pieces[:-1] if len(pieces) > 1 else pieces:
    at += len(piece)
    closed[at] = False
  return Frame(given.tolist(), closed, max_new_tokens)


def _task_frame(data, text: str, seed: int) -> Frame:
  if not text:  # the first test problem
    [(given, answer)] = data.problems("test", seed=seed, number=1)
    return Frame(given.tolist(), [True] * (len(given) - 1) + [False], len(answer))
  try:
    question = [int(word) for word in text.split()]
  except ValueError:
    raise ConfigError(
      f"--prompt {text!r}: this run's data have no text; give token numbers between blanks, or no prompt "
      f"for the first test problem"
    ) from None
  wrong = [t for t in question if not 0 <= t < data.vocab_size]
  if wrong:
    raise ConfigError(f"--prompt: token {wrong[0]} is outside the vocabulary of {data.vocab_size}")
  given = prompt(question, data.special_tokens, data.form).tolist()
  return Frame(given, [True] * (len(given) - 1) + [False], data.seq_len - len(given))


def speaker(data) -> Callable[[Sequence[int]], str]:
  """tokens -> their text, blanks at the ends included; of tasks, numbers between blanks with `:`
  for BOS.
  """
  ids = data.special_tokens
  if data.has_text:
    tokenizer = data.load_tokenizer()
    return lambda tokens: tokenizer.decode(int(t) for t in tokens if t < tokenizer.vocab_size)
  silent = (ids.cls, ids.pad, ids.mask, ids.eos)
  return lambda tokens: " ".join(
    ":" if t == ids.bos else str(int(t)) for t in tokens if t not in silent
  )


def _grow(cfg, params, answering: Answering, begun: Frame) -> int:
  """The sequence after every insertion, the new token standing out; then how fast that went."""
  import jax
  from rich.console import Console
  from rich.live import Live
  from rich.text import Text

  inserter, console = (
    answering.inserter(cfg.model, cfg.data.form, cfg.data.special_tokens),
    Console(highlight=False),
  )
  rows = inserter.start([begun.tokens], [begun.closed])
  seen, seconds, timed, count, passes, say = None, 0.0, 0, 0, 0, speaker(cfg.data)

  def shown(tokens: np.ndarray, new: int | None) -> Text:
    if new is None:
      return Text(say(tokens))
    join = "" if cfg.data.has_text else " "
    before, middle, after = (
      say(t) for t in (tokens[:new], tokens[new : new + 1], tokens[new + 1 :])
    )
    return Text.assemble(
      before, join, (middle, "bold reverse" if console.is_terminal else ""), join, after
    )

  tokens = np.asarray(begun.tokens)
  with Live(shown(tokens, None), console=console, auto_refresh=False) as live:
    steps, start = (
      inserter.stream(params, rows, jax.random.key(answering.seed)),
      time.perf_counter(),
    )
    for rows, step in steps:
      passes = int(rows.steps)
      if bool(step.inserted_B[0]):
        tokens = np.asarray(rows.tokens_BL)[0, : int(rows.length_B[0])]
        count += 1
      now = time.perf_counter()
      if rows.tokens_BL.shape == seen:  # the first pass at every buffer size compiles
        seconds, timed = seconds + now - start, timed + 1
      seen = rows.tokens_BL.shape
      if bool(step.inserted_B[0]):
        text = shown(tokens, int(step.slot_B[0]) + 1)
        if console.is_terminal:
          live.update(text, refresh=True)
        else:
          console.print(text, soft_wrap=True)
      start = time.perf_counter()
    live.update(shown(tokens, None), refresh=True)
  stopped = bool(rows.alive_B[0]) and passes < inserter.max_steps
  passes += stopped  # the pass that said stop is not shown
  console.print(
    _speed(
      count,
      passes,
      count / max(passes, 1),
      seconds if timed else None,
      "without compilation",
      timed,
    ),
    style="dim",
  )
  return 0


def _speed(
  tokens: int, passes: int, per_pass: float, seconds, how: str, timed: int | None = None
) -> str:
  rate = (
    ""
    if not seconds
    else f", {(tokens if timed is None else timed * per_pass) / seconds:.1f} tokens/s ({how})"
  )
  return f"{tokens} tokens in {passes} forward passes, {per_pass:.2f} per pass{rate}"
