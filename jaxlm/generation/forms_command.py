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

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.data.forms import framed, prompt
from jaxlm.generation.base import Engine, Prompt
from jaxlm.generation.infilling import Infilling

GAP = re.compile(r"(_{3,})")


def generate(cfg, engine: Engine, params, args) -> int:
  """Prints what an engine makes of the prompts of a run of `cfg.data.form`; args of `jaxlm
  generate`.
  """
  data = cfg.data
  read = gapped if isinstance(engine, Infilling) else frame
  prompts = [
    read(data, text, args.max_new_tokens, cfg.seed)
    for text in (args.prompt or [""])
    for _ in range(args.num_samples)
  ]
  grows = (engine.form or "").startswith("insertion")
  if grows and len(prompts) == 1 and not args.json:
    return _grow(cfg, engine, params, prompts[0], args)
  start = time.perf_counter()
  most = max(map(len, prompts)) + args.max_new_tokens
  found = engine.generate(
    params,
    prompts,
    args.max_new_tokens,
    max_len=min(most, cfg.model.max_len or most),
    seed=args.seed,
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


def frame(data, text: str, max_new_tokens: int, seed: int = 0) -> Prompt:
  """The prompt as the data's form begins. seed: of the run, whose test problems a task without a
  prompt reads.
  """
  if not data.has_text:
    return _task_frame(data, text, seed)
  pieces, gaps = _pieces(data, text)
  if gaps and not data.form.startswith("insertion"):
    raise ConfigError(
      f"--prompt {text!r} has a gap, which only insertion models fill without being told its length; this "
      f"run's form is {data.form!r}"
    )
  given, _ = framed([], sum(pieces, []), data.special_tokens, data.form)
  given = given[:-1] if data.form == "causal" else given
  closed, at = [True] * len(given), len(given) - sum(map(len, pieces)) - 1
  for piece in pieces[:-1] if gaps else pieces:
    at += len(piece)
    closed[at] = False
  return Prompt(given.tolist(), closed, max_new_tokens)


def gapped(data, text: str, max_new_tokens: int = 0, seed: int = 0) -> Prompt:
  """The prompt of `--algorithm infilling`: its text, with a token to be found for each underscore of
  a gap. Insertion does not look at how many they are.
  """
  if not data.has_text:
    raise ConfigError(
      "--algorithm infilling fills gaps of texts, and the data of this run are none"
    )
  pieces, gaps = _pieces(data, text)
  if not gaps:
    raise ConfigError(f"--prompt {text!r} has no gap; write ___, one underscore for each token")
  tokens, removed = [*pieces[0]], [False] * len(pieces[0])
  for gap, piece in zip(gaps, pieces[1:]):
    tokens += [0] * len(gap) + piece
    removed += [True] * len(gap) + [False] * len(piece)
  return Prompt(tokens, removed=removed)


def _pieces(data, text: str) -> tuple[list[list[int]], list[str]]:
  """(tokens of the text around its gaps, the gaps)."""
  tokenizer, parts = data.load_tokenizer(), GAP.split(text)
  pieces = [
    tokenizer.encode(piece.strip() if i == 0 else piece.rstrip()).tolist() if piece.strip() else []
    for i, piece in enumerate(parts[::2])
  ]
  return pieces, parts[1::2]


def _task_frame(data, text: str, seed: int) -> Prompt:
  if not text:  # the first test problem
    [(given, answer)] = data.problems("test", seed=seed, number=1)
    return Prompt(given.tolist(), num_new=len(answer))
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
  return Prompt(given, num_new=data.seq_len - len(given))


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


def _grow(cfg, engine: Engine, params, begun: Prompt, args) -> int:
  """The sequence after every insertion, the new token standing out; then how fast that went."""
  from rich.console import Console
  from rich.live import Live
  from rich.text import Text

  console, say = Console(highlight=False), speaker(cfg.data)

  def shown(tokens, new: int | None) -> Text:
    if new is None:
      return Text(say(tokens))
    join = "" if cfg.data.has_text else " "
    before, middle, after = (
      say(t) for t in (tokens[:new], tokens[new : new + 1], tokens[new + 1 :])
    )
    return Text.assemble(
      before, join, (middle, "bold reverse" if console.is_terminal else ""), join, after
    )

  most = args.max_new_tokens
  if cfg.model.max_len is not None:  # a row may fill the table of positions, and no more
    most = max(min(most, cfg.model.max_len - len(begun)), 1)
  seconds, timed, start, last = 0.0, 0, None, None
  with Live(shown(begun.tokens, None), console=console, auto_refresh=False) as live:
    for snapshot in engine.watch(params, begun, most, seed=args.seed):
      now = time.perf_counter()
      if start is not None and not snapshot.final and not snapshot.compiled:
        seconds, timed = seconds + now - start, timed + 1
      if snapshot.newest is not None:
        text = shown(snapshot.sequence, snapshot.newest)
        if console.is_terminal:
          live.update(text, refresh=True)
        else:
          console.print(text, soft_wrap=True)
      start, last = time.perf_counter(), snapshot
    live.update(shown(last.sequence, None), refresh=True)
  if not console.is_terminal:  # a live display ends its last line in a terminal only
    console.line()
  count = len(last.sequence) - len(begun)
  rate = seconds if timed else None
  per_pass = count / max(last.passes, 1)
  console.print(
    _speed(count, last.passes, per_pass, rate, "without compilation", timed), style="dim"
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
