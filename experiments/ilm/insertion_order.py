"""In which order a trained insertion model wrote its sequences, as a picture.

  python experiments/ilm/insertion_order.py --run runs/ilm-text --out
  experiments/ilm/results/insertion_order.png
      [--prompt "a ___ used for ___"] [--samples 6] [--top_p 0.9] [--seed 0] [--greedy]

Each row is a finished sequence from left to right; a token's colour and number say when it was
inserted, what was given has no number. Runs of tasks (star graphs) show test problems and need no
prompt.
"""

import argparse
import json
import pathlib


def orders(cfg, params, prompts, answering):
  """[(tokens, when)] of each prompt: when is the number of the insertion, from 1; 0 was given."""
  engine, out = answering.engine(cfg.model, cfg.data.form, cfg.data.special_tokens), []
  for number, prompt in enumerate(prompts):
    tokens, when = list(prompt.tokens), [0] * len(prompt)
    room = answering.max_len - len(prompt)
    for snapshot in engine.watch(params, prompt, room, seed=answering.seed + number):
      if snapshot.newest is not None:
        tokens = [int(token) for token in snapshot.sequence]
        when.insert(snapshot.newest, max(when) + 1)
    out.append((tokens, when))
  return out


def draw(rows, pieces, path, title: str):
  """rows: [(tokens, when)]; pieces(tokens) -> their texts.

  What is wider than the page goes on below, further right.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  most = max(max(when) for _, when in rows)
  boxes, y = [], 0.0  # (text, step, x, y, width); a page is 1 wide
  for tokens, when in rows:
    x = 0.005
    for text, step in zip(pieces(tokens), when):
      if not text.strip():
        continue
      size = 0.011 * len(text.strip()) + 0.004
      if x + size > 1:
        x, y = 0.04, y + 0.8
      boxes.append((text.strip(), step, x, y, size))
      x += size + 0.003
    y += 1.1
  wide = max(x + size for *_, x, _, size in boxes)
  fig, axes = plt.subplots(figsize=(max(4.0, 11 * wide), 0.5 * y + 0.5), dpi=130)
  axes.axis("off")
  axes.set(xlim=(0, wide + 0.005), ylim=(y, -0.1))
  colours = plt.get_cmap("viridis_r")
  for text, step, x, y, size in boxes:
    if step:
      axes.add_patch(
        plt.Rectangle(
          (x, y + 0.3), size, 0.45, color=colours(0.1 + 0.85 * step / most), linewidth=0
        )
      )
      axes.text(
        x + size / 2, y + 0.27, str(step), ha="center", va="bottom", fontsize=6, color="0.35"
      )
    axes.text(
      x + size / 2,
      y + 0.525,
      text,
      ha="center",
      va="center",
      fontsize=8.5,
      family="monospace",
      color="white" if step > 0.45 * most else "black",
    )
  axes.set_title(title, fontsize=10, loc="left")
  fig.tight_layout()
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(path)
  plt.close(fig)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", required=True)
  parser.add_argument("--out", required=True)
  parser.add_argument("--prompt", action="append", default=[])
  parser.add_argument("--samples", type=int, default=6, help="of each prompt; of a task, problems")
  parser.add_argument("--max_len", type=int, default=None, help="default: the training length")
  parser.add_argument("--top_p", type=float, default=0.9)
  parser.add_argument("--greedy", action="store_true")
  parser.add_argument("--title", default="order of insertion")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()

  from jaxlm.checkpoint.opening import open_model
  from jaxlm.generation import Prompt
  from jaxlm.generation.answers import Answering
  from jaxlm.generation.forms_command import frame
  from jaxlm.generation.insertion import Filter, InsertionSampling
  from jaxlm.training.config import run_config

  cfg = run_config(json.loads((pathlib.Path(args.run) / "config.json").read_text()))
  params = open_model(args.run, ema=cfg.train.ema_decay is not None).params
  text = cfg.data.has_text
  if text:
    frames = [
      frame(cfg.data, prompt, cfg.data.seq_len)
      for prompt in args.prompt or [""]
      for _ in range(args.samples)
    ]
  else:
    frames = [
      Prompt(p.tolist()) for p, _ in cfg.data.problems("test", seed=cfg.seed, number=args.samples)
    ]
  token = Filter(top_k=1) if args.greedy else Filter(top_p=args.top_p)
  answering = Answering(
    max_len=args.max_len or cfg.data.seq_len,
    insertion=InsertionSampling(token, Filter(top_k=1)),
    seed=args.seed,
  )
  rows = orders(cfg, params, frames, answering)
  ids = cfg.data.special_tokens
  if text:
    tokenizer = cfg.data.load_tokenizer()

    def pieces(tokens):
      return [tokenizer.decode([t]) if t < ids.cls else "" for t in tokens]
  else:
    rows = [
      (t[-(len(t) - len(f.tokens)) - 3 :], w[-(len(w) - len(f.tokens)) - 3 :])
      for (t, w), f in zip(rows, frames)
    ]

    def pieces(tokens):
      return [":" if t == ids.bos else str(t) for t in tokens]

  draw(rows, pieces, args.out, args.title)
  for tokens, when in rows:
    print(
      " ".join(
        f"{piece.strip()}[{step}]" if step else piece for piece, step in zip(pieces(tokens), when)
      )
    )


if __name__ == "__main__":
  main()
