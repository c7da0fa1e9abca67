"""`jaxlm generate --run DIR --prompt TEXT`: continue prompts with a trained model, as they are
written.
"""

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags, whole
from jaxlm.config import ConfigError, check_seed
from jaxlm.generation.base import ENGINES, Options, engine_class

MOST = 10_000_000  # a cache has a place for each token, and is made before the first

USAGE = """Continues prompts with a run's newest checkpoint; one prompt is printed token by token as it is drawn.

  jaxlm generate --run runs/carope --prompt "Call me" --max_new_tokens 200 --temperature 0.8 --top_p 0.95
  jaxlm generate --run runs/carope --prompt "Call me" --prompt "It was" --num_samples 2 --seed 1

Of weights from elsewhere, with a configuration whose `data` they read:

  jaxlm convert --from hf released/hnet_1stage_L --to weights/hnet
  jaxlm generate --run weights/hnet --config=configs/hnet/paper.py:1stage_L --prompt "Call me"

Insertion models fill gaps of a prompt; the sentence is shown after every insertion:

  jaxlm generate --run runs/ilm-text --prompt "a ___ used for ___" --top_p 0.9 --slot_top_k 1

Every model has a default decoding engine. --algorithm names another: {engines}."""


@command("jaxlm generate")
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm generate",
    description=USAGE.format(engines=", ".join(ENGINES.table)),
    others=CONFIG,
    bare="--run",
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
  parser.add_argument("--algorithm", default=None, help="decoding engine; default: the model's")
  parser.add_argument(
    "--temperature",
    type=float,
    default=None,
    help="0 is greedy; default 0.8, of insertion and masked diffusion 1, of encoder-decoders 0",
  )
  parser.add_argument("--top_k", type=whole, default=None, help="keep the k most probable tokens")
  parser.add_argument(
    "--top_p", type=float, default=None, help="keep the most probable tokens that make up p"
  )
  parser.add_argument(
    "--min_p",
    type=float,
    default=None,
    help="keep tokens of at least p times the best's probability",
  )
  parser.add_argument(
    "--slot_top_k",
    type=whole,
    default=None,
    help="insertion: of the slots, chosen before the token",
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
  cfg = config_of(args.run, spec, overrides)
  cls = engine_class(cfg.model, args.algorithm, cfg.data.batch_form)
  options = Options(
    **{name: value for name, value in vars(args).items() if name in Options._fields}
  )
  return _continue(cfg, args, cls.from_command(cfg.model, cfg.data, options))


def _encodes(text: str) -> bool:
  """Whether no byte of it was undecodable where the command line was read."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _continue(cfg, args, engine) -> int:
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.data.base import FramedDataConfig

  params = open_model(args.run, model=cfg.model, step=args.step, ema=args.ema).params
  if isinstance(cfg.data, FramedDataConfig):
    from jaxlm.generation.forms_command import generate

    return generate(cfg, engine, params, args)
  texts = [text for text in args.prompt or [""] for _ in range(args.num_samples)]
  if cfg.data.batch_form == "encoder_decoder":
    return _answer(engine, params, texts, args)
  tokenizer = cfg.data.load_tokenizer()
  prompts = [tokenizer.prompt(text).tolist() for text in texts]
  if len(prompts) == 1 and not args.json:
    text, shown = tokenizer.stream(), len(prompts[0])
    print(texts[0], end="", flush=True)
    for snapshot in engine.watch(params, prompts[0], args.max_new_tokens, seed=args.seed):
      for token in snapshot.sequence[shown:]:
        print(text.push(int(token)), end="", flush=True)
      shown = len(snapshot.sequence)
    print(text.close())
    return 0
  found = engine.generate(params, prompts, args.max_new_tokens, seed=args.seed)
  for text, tokens in zip(texts, found.answers):
    new = tokenizer.decode(tokens.tolist())
    print(
      json_text.dumps({"prompt": text, "continuation": new})
      if args.json
      else f"{text}{new}\n{'-' * 40}"
    )
  return 0


def _answer(engine, params, texts, args) -> int:
  """An encoder-decoder reads the prompt whole, over ByT5's bytes, and answers."""
  from jaxlm.data import byte_t5

  prompts = [byte_t5.encode(text) for text in texts]
  found = engine.generate(params, prompts, args.max_new_tokens, seed=args.seed)
  for text, ids in zip(texts, found.answers):
    answer = byte_t5.decode(ids)
    print(json_text.dumps({"prompt": text, "continuation": answer}) if args.json else answer)
  return 0
