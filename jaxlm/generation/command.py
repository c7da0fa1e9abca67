"""`jaxlm generate --run DIR --prompt TEXT`: continue prompts with a trained model, as they are
written.
"""

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags, whole
from jaxlm.config import ConfigError, check_seed
from jaxlm.generation.base import ENGINES, Options, engine_class
from jaxlm.generation.processors import PROCESSORS

MOST = 10_000_000  # a cache has a place for each token, and is made before the first

USAGE = """Continues prompts with a run's newest checkpoint; one prompt is printed token by token as it is drawn.

  jaxlm generate --run runs/carope --prompt "Call me" --max_new_tokens 200 --temperature 0.8 --top_p 0.95
  jaxlm generate --run runs/carope --prompt "Call me" --prompt "It was" --num_samples 2 --seed 1

Of weights from elsewhere, with a configuration whose `data` they read:

  jaxlm convert --from hf released/hnet_1stage_L --to weights/hnet
  jaxlm generate --run weights/hnet --config=configs/hnet/paper.py:1stage_L --prompt "Call me"

Insertion models fill gaps of a prompt; the sentence is shown after every insertion:

  jaxlm generate --run runs/ilm-text --prompt "a ___ used for ___" --top_p 0.9 --slot_top_k 1

Several tokens per pass of the model with a small one that drafts, answers that match a regular
expression, and beams (docs/decoding.md):

  jaxlm generate --run runs/large --draft runs/small --algorithm speculative --prompt "Call me"
  jaxlm generate --run runs/large --algorithm constrained --constraint "[0-9]{{4}}" --prompt "In the year "

A logit processor in front of the temperature:

  jaxlm generate --run runs/large --process.kind=cyclic --process.words=wait,but --process.amplitude=5 --prompt "Let"

Every model has a default decoding engine. --algorithm names another: {engines}."""


@command("jaxlm generate")
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm generate",
    description=USAGE.format(engines=", ".join(ENGINES.table)),
    others=CONFIG,
    bare=("--run", "--prompt"),
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
  parser.add_argument("--draft", default=None, help="run of a small model with the same tokenizer")
  parser.add_argument(
    "--num_draft", type=whole, default=None, help="speculative: tokens drafted per round"
  )
  parser.add_argument(
    "--drafting",
    default=None,
    help="tree: rsd_c, rsd_s, replacement, dyspec or dyspec_layers; default rsd_c",
  )
  parser.add_argument(
    "--constraint", default=None, help="constrained: regular expression of the whole answer"
  )
  parser.add_argument("--particles", type=whole, default=None, help="constrained; default 8")
  parser.add_argument("--beams", type=whole, default=None, help="beam; default 4")
  parser.add_argument("--block_len", type=whole, default=None, help="blocks; default 16")
  parser.add_argument("--num_samples", type=whole, default=1, help="continuations of each prompt")
  parser.add_argument("--seed", type=whole, default=0)
  parser.add_argument("--step", type=whole, default=None, help="checkpoint; default: the newest")
  parser.add_argument("--ema", action="store_true", help="the average of the parameters")
  parser.add_argument("--json", action="store_true", help="one JSON object per continuation")
  from jaxlm.training.saved_config import config_of

  argv, process = _process_flags(argv)
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
  algorithm = args.algorithm or ("speculative" if args.draft else None)
  cls = engine_class(cfg.model, algorithm, cfg.data.batch_form)
  asked = {name: value for name, value in vars(args).items() if name in Options._fields}
  if process:
    asked["processors"] = (_processor(process, cfg.data.load_tokenizer()),)
  if args.draft:
    asked["draft"] = _draft(args, cfg, cls)
  return _continue(
    cfg, args, cls.from_command(cfg.model, cfg.data, Options(**asked), cfg.objective)
  )


def _process_flags(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """(the other arguments, {field: value} of --process.field=value)."""
  rest, fields = [], {}
  for arg in argv:
    if arg.startswith("--process."):
      name, equals, value = arg.removeprefix("--process.").partition("=")
      if not equals:
        raise ConfigError(f"{arg}: wanted a value, as in --process.{name}=VALUE")
      fields[name] = value
    else:
      rest.append(arg)
  return rest, fields


def _processor(fields: dict[str, str], tokenizer):
  """The logit processor of --process.*; words: its ids, by their spelling."""
  import ast

  from jaxlm.generation.engine.cyclic_reflex import ids_of_words

  found = {}
  for name, value in fields.items():
    if name == "words":
      found["ids"] = ids_of_words(value.split(","), tokenizer)
      continue
    if name == "until" and not value.isdigit():
      [found["until"]] = ids_of_words([value], tokenizer)
      continue
    try:
      found[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      found[name] = value
  return PROCESSORS.build(found)


def _draft(args, cfg, cls):
  """The config of the model in --draft, whose tokenizer must be the run's."""
  from jaxlm.generation.base import registered_name
  from jaxlm.generation.engine.drafted import DraftedEngine
  from jaxlm.training.saved_config import config_of

  if not issubclass(cls, DraftedEngine):
    raise ConfigError(
      f"--draft={args.draft}: engine {registered_name(ENGINES, cls)!r} drafts nothing; choose --algorithm speculative "
      f"or tree, or leave --draft out"
    )
  other = config_of(args.draft, None, {})
  names = [c.data.load_tokenizer().fingerprint for c in (cfg, other)]
  if names[0] != names[1]:
    raise ConfigError(
      f"--run={args.run} has the tokenizer {names[0]} and --draft={args.draft} has {names[1]}; draft with a model that "
      f"was trained with the run's tokenizer"
    )
  return other.model


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
  if args.draft:
    params = {"target": params, "draft": open_model(args.draft, ema=args.ema).params}
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
