"""Two pictures in text from trained runs: a draft tree, and a block-diffusion sample that grows.

  python experiments/decoding/pictures.py --runs runs --out experiments/decoding/results/pictures.json

Reads the runs of the tables decoding/rsd (target and draft) and decoding/ctrldiff (row `b16`), which
`jaxlm reproduce` leaves in the folder. From the JSON, docs/decoding.md is filled by `jaxlm reproduce --report`.

A run that is not there leaves its picture as it was.

Tree: DySpec with 12 nodes at temperature 1; of 32 validation prompts the first whose third round accepts three
drafts or more of a root with two children or more. Sample: 48 bytes in blocks of 16 with four steps at
temperature 1, behind the first of these prompts.
"""

import argparse
import json
import pathlib

BLOCK, STEPS, NEW = 16, 4, 48


def shown(token: int) -> str:
  """A byte as one character: what does not print is a dot."""
  return chr(token) if 32 <= token < 127 else "·"


def tree_lines(tokens, parents, accepted) -> list[str]:
  """A drafted tree as text. Node 0 is the root; accepted: the numbers of the accepted nodes."""
  children: dict[int, list[int]] = {}
  for node, parent in enumerate(parents):
    if parent >= 0:
      children.setdefault(parent, []).append(node)
  lines = []

  def below(node: int, indent: str) -> None:
    for at, child in enumerate(children.get(node, [])):
      last = at + 1 == len(children[node])
      mark = "  accepted" if child in accepted else ""
      lines.append(f"{indent}{'└─' if last else '├─'} '{shown(tokens[child])}' {child}{mark}")
      below(child, indent + ("   " if last else "│  "))

  lines.append(f"'{shown(tokens[0])}' 0")
  below(0, "")
  return lines


def accepted_nodes(tokens, parents, real, new, count: int) -> list[int]:
  """The nodes along the first `count` tokens of `new`, from the root down."""
  node, path = 0, []
  for token in new[:count]:
    node = next(
      n for n in range(1, len(tokens)) if real[n] and parents[n] == node and tokens[n] == token
    )
    path.append(node)
  return path


def tree(runs, scale: str, seed: int) -> dict:
  """The picture of a draft tree."""
  import jax

  from experiments.decoding import pair, rsd
  from jaxlm.experiments.reproduce.queue import workdir
  from jaxlm.generation.engine import unrolled
  from jaxlm.generation.engine.dyspec import DySpec
  from jaxlm.generation.engine.trees import TreeSpeculative
  from jaxlm.generation.sampling import Sampling
  from jaxlm.training.config import run_config

  folder = workdir(runs, rsd.TABLE, scale) / "target" / f"seed{seed}"
  trained = opened(folder)
  cfg = run_config(trained.config)
  draft, draft_params = pair.draft_of(trained)
  engine = TreeSpeculative(cfg.model, draft, Sampling(temperature=1.0), drafting=DySpec(12, 8))
  engine, params = unrolled.opened_pair(engine, {"target": trained.params, "draft": draft_params})
  texts = pair.prompts(trained, 32)
  batch = pair.batch_of(engine, texts, NEW, seed)
  rounds = engine.dispatches(params, batch, rounds=1)
  for _ in range(3):
    carry = next(rounds)
  done = jax.device_get(carry.committed)
  keys_B = jax.vmap(jax.random.fold_in)(batch.keys_B, carry.committed.num_new_B)
  drafted = jax.device_get(jax.jit(engine.grow)(params["draft"], carry, keys_B)[0])
  after = jax.device_get(next(rounds).committed)
  for b in range(len(texts)):
    count = int(after.accepted_B[b] - done.accepted_B[b])
    tokens, parents, real = (
      x[b].tolist() for x in (drafted.tokens_BM, drafted.parent_BM, drafted.real_BM)
    )
    if count >= 3 and sum(p == 0 and r for p, r in zip(parents, real)) > 1:
      break
  else:
    raise SystemExit("no round of these prompts accepts three drafts; give another --seed")
  parents = [p if r else -1 for p, r in zip(parents, real)]
  begin = int(done.num_new_B[b])
  new = after.new_BG[b, begin : int(after.num_new_B[b])].tolist()
  path = accepted_nodes(tokens, parents, real, new, count)
  before = "".join(map(shown, [*texts[b], *done.new_BG[b, :begin].tolist()]))
  lines = [
    f"text so far: {before}",
    "",
    *tree_lines(tokens, parents, set(path)),
    "",
    f"accepted: {count}, then the target's own '{shown(new[count])}'"
    if len(new) > count
    else f"accepted: {count}",
  ]
  return {"lines": lines, "run": folder.relative_to(runs).as_posix()} | made(folder)


def blocks(runs, scale: str, seed: int) -> dict:
  """The picture of a block-diffusion sample that grows: a line per step."""
  from experiments.decoding import ctrldiff, pair
  from jaxlm.experiments.reproduce.queue import workdir
  from jaxlm.generation.engine.blocks import Blocks
  from jaxlm.training.config import run_config

  folder = workdir(runs, ctrldiff.TABLE, scale) / "b16" / f"seed{seed}"
  trained = opened(folder)
  cfg = run_config(trained.config)
  engine = Blocks(cfg.model, cfg.objective.mask, block_len=BLOCK, steps=STEPS)
  prompt, lines = pair.prompts(trained, 32)[0], []
  for snapshot in engine.watch(trained.params, prompt, NEW, seed=seed):
    line = "".join("_" if t == engine.mask else shown(t) for t in snapshot.sequence)
    if not lines or line != lines[-1]:
      lines.append(line)
  return {"lines": lines, "run": folder.relative_to(runs).as_posix()} | made(folder)


def opened(folder):
  """The trained row of a run folder, as measures see it. FileNotFoundError where it was not run."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.experiments.table import Trained

  config = json.loads((folder / "config.json").read_text())
  return Trained(config, open_model(folder).params, str(folder))


def made(folder) -> dict:
  """The record of this process, and {"trained": the revisions at which the run was trained}."""
  from jaxlm.experiments import record

  trained = sorted({start["revision"] for start in record.starts(folder)})
  return {"trained": trained} | record.made_by()


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--runs", default="runs", type=pathlib.Path)
  parser.add_argument("--scale", default="smoke")
  parser.add_argument("--seed", default=0, type=int)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  from jaxlm import json_text

  found = json.loads(args.out.read_text())["pictures"] if args.out.exists() else {}
  for name, of in (("tree", tree), ("blocks", blocks)):
    try:
      found[name] = of(args.runs, args.scale, args.seed)
    except FileNotFoundError as missing:
      print(f"{name}: {missing.filename} is not there, so nothing is drawn of it\n")
      continue
    print("\n".join(found[name]["lines"]), end="\n\n")
  args.out.parent.mkdir(exist_ok=True)
  args.out.write_text(json_text.dumps({"pictures": found}, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
