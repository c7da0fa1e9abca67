"""`jaxlm generate --run DIR --prompt TEXT`: continue prompts with a trained model, as they are
written.
"""

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import CONFIG, Parser, whole
from jaxlm.config import ConfigError, check_seed

MOST = 10_000_000  # a cache has a place for each token, and is made before the first

USAGE = """Continues prompts with a run's newest checkpoint; one prompt is printed token by token as it is drawn.

  jaxlm generate --run runs/carope --prompt "Call me" --max_new_tokens 200 --temperature 0.8 --top_p 0.95
  jaxlm generate --run runs/carope --prompt "Call me" --prompt "It was" --num_samples 2 --seed 1

Of weights from elsewhere, with a configuration whose `data` they read:

  jaxlm convert --from hf released/hnet_1stage_L --to weights/hnet
  jaxlm generate --run weights/hnet --config=configs/hnet/paper.py:1stage_L --prompt "Call me"

Insertion models fill gaps of a prompt; the sentence is shown after every insertion:

  jaxlm generate --run runs/ilm-text --prompt "a ___ used for ___" --top_p 0.9 --slot_top_k 1"""


@command("jaxlm generate")
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm generate",
    description=USAGE,
    others=CONFIG,
    example='jaxlm generate --run runs/tiny --prompt "Call me"',
  )
  parser.add_argument(
    "--run",
    required=True,
    help="run folder, or weights folder of `jaxlm convert` with --config=FILE for its `data`",
  )
  parser.add_argument(
    "--prompt", action="append", default=[], help="text to continue; repeat for a batch"
  )
  parser.add_argument("--max_new_tokens", type=whole, default=200)
  parser.add_argument(
    "--temperature", type=float, default=None, help="0 is greedy; default 0.8, of insertion 1"
  )
  parser.add_argument("--top_k", type=whole, default=None)
  parser.add_argument("--top_p", type=float, default=None)
  parser.add_argument(
    "--slot_top_k",
    type=whole,
    default=None,
    help="insertion: of the slots, before the token is drawn",
  )
  parser.add_argument("--slot_top_p", type=float, default=None)
  parser.add_argument(
    "--stop_threshold",
    type=float,
    default=None,
    help="insertion ends at this probability; default 0.9",
  )
  parser.add_argument("--num_samples", type=whole, default=1, help="continuations of each prompt")
  parser.add_argument("--seed", type=whole, default=0)
  parser.add_argument("--step", type=whole, default=None, help="checkpoint; default: the newest")
  parser.add_argument("--ema", action="store_true", help="the average of the parameters")
  parser.add_argument("--json", action="store_true", help="one JSON object per continuation")
  from jaxlm.training.config import parse_flags
  from jaxlm.training.saved_config import config_of

  spec, overrides, rest = parse_flags(argv)
  args = parser.parse_args(rest)
  for prompt in args.prompt:
    if not _encodes(prompt):
      raise ConfigError(
        f"--prompt {ascii(prompt)} holds bytes that are not UTF-8 text; give it re-encoded"
      )
  if args.max_new_tokens < 1 or args.num_samples < 1:
    raise ConfigError("--max_new_tokens and --num_samples are at least 1")
  if max(args.max_new_tokens, args.num_samples) > MOST:
    raise ConfigError(f"--max_new_tokens and --num_samples are at most {MOST:,}")
  check_seed(args.seed, "--seed")
  from jaxlm.generation.sampling import Sampling

  sampling = Sampling(0.8 if args.temperature is None else args.temperature, args.top_k, args.top_p)
  return _continue(config_of(args.run, spec, overrides), args, sampling)


def _encodes(text: str) -> bool:
  """Whether no byte of it was undecodable where the command line was read."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _continue(cfg, args, sampling) -> int:
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.data.base import FramedDataConfig
  from jaxlm.generation import Generator

  if isinstance(cfg.data, FramedDataConfig):
    from jaxlm.generation.forms_command import generate

    return generate(
      cfg,
      open_model(args.run, model=cfg.model, step=args.step, ema=args.ema).params,
      args,
      sampling,
    )
  if cfg.model.scores == "target_sequence":
    return _answer(cfg, args)
  if not cfg.model.decodes:
    raise ConfigError(
      f"a model that scores {cfg.model.scores} does not decode token by token; what it makes is measured by its tables "
      f"in experiments/"
    )
  params = open_model(args.run, model=cfg.model, step=args.step, ema=args.ema).params
  tokenizer = cfg.data.load_tokenizer()
  texts = [text for text in (args.prompt or [""]) for _ in range(args.num_samples)]
  prompts = [tokenizer.prompt(text).tolist() for text in texts]
  generator = Generator(cfg.model, params, sampling, stop_tokens=tokenizer.stops)
  if len(prompts) == 1 and not args.json:
    text = tokenizer.stream()
    print(texts[0], end="", flush=True)
    for token_B in generator.stream(prompts, args.max_new_tokens, seed=args.seed):
      print(text.push(int(token_B[0])), end="", flush=True)
    print(text.close())
    return 0
  for text, tokens in zip(texts, generator.generate(prompts, args.max_new_tokens, seed=args.seed)):
    new = tokenizer.decode(tokens.tolist())
    print(
      json_text.dumps({"prompt": text, "continuation": new})
      if args.json
      else f"{text}{new}\n{'-' * 40}"
    )
  return 0


def _answer(cfg, args) -> int:
  """An encoder-decoder reads the prompt whole and answers, greedily; a delete gate deletes hard."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.generation.encoder_decoder import answers
  from jaxlm.generation.hard_deletion import evaluation_mode

  params = open_model(args.run, model=cfg.model, step=args.step, ema=args.ema).params
  prompts = args.prompt or [""]
  for text, answer in zip(
    prompts,
    answers(cfg.model.build(), params, prompts, args.max_new_tokens, evaluation_mode(cfg.model)),
  ):
    print(json_text.dumps({"prompt": text, "continuation": answer}) if args.json else answer)
  return 0
