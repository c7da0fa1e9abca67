"""Insertion language models, Figure 6: time per token against likelihood, of insertion, masked
diffusion and left to right.

  python experiments/ilm/figure6.py --runs runs/ilm-text/smoke --out
  experiments/ilm/results/figure6-smoke [--samples 128]

--runs: folder with the trained rows of table 2 (ilm, arm, mdm and the judge, each with seed0); any
that is absent is left out, the judge is needed. Points: insertion and left to right at several
nuclei, masked diffusion at several numbers of passes. Time is of a second run with the same shapes
(the first compiles), of the whole batch divided by its new tokens. NLL is per token under the
judge, a model of the other half of the documents; entropy and length stand beside it, because a
text that repeats itself is likely.
The paper's figure has its own data, judge and device: only the picture's shape is comparable.
"""

import argparse
import dataclasses
import json
import pathlib
import time

from jaxlm import json_text

LABELS = {"ilm": "insertion (ILM)", "arm": "left to right (ARM)", "mdm": "masked diffusion (MDM)"}
NUCLEI, PASSES = (0.5, 0.9, None), (2, 4, 8, 16, 30)


def load(folder):
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.training.config import run_config

  cfg = run_config(json.loads((folder / "config.json").read_text()))
  return cfg, open_model(folder, ema=cfg.train.ema_decay is not None).params


def judge_of(folder):
  from jaxlm.evaluation.causal_judge import CausalJudge

  cfg, params = load(folder)
  return CausalJudge(cfg.model, params, cfg.data.load_tokenizer(), cfg.data.special_tokens.bos)


def points(row: str, cfg, params, judge, samples: int, seed: int):
  """One dict per setting: ms_per_token, nll, entropy, length, tokens_per_pass."""
  from jaxlm.evaluation.judge import quality
  from jaxlm.generation.answers import Answering
  from jaxlm.generation.insertion import Filter, InsertionSampling
  from jaxlm.generation.sampling import Sampling

  ids, form, L = cfg.data.special_tokens, cfg.data.form, cfg.data.seq_len
  base = Answering(max_len=L, batch_size=samples, seed=seed)
  if row == "mdm":
    settings = {f"{n} passes": dataclasses.replace(base, passes=n) for n in PASSES if n <= L}
  elif row == "ilm":
    settings = {
      f"p = {p or 1}": dataclasses.replace(
        base, insertion=InsertionSampling(Filter(top_p=p), Filter(top_k=1))
      )
      for p in NUCLEI
    }
  else:
    settings = {
      f"p = {p or 1}": dataclasses.replace(base, causal=Sampling(1.0, None, p)) for p in NUCLEI
    }
  prompt = [ids.cls, ids.bos] if form == "insertion" else [ids.bos]
  out = []
  for name, answering in settings.items():

    def run(answering=answering):
      return answering.answer(
        cfg.model, params, form, ids, [prompt] * samples, [L - len(prompt)] * samples
      )

    run()
    start = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - start
    texts = [cfg.data.decode(s[len(prompt) :]) for s in found.sequences]
    q = quality(judge(texts))
    out.append(
      dict(
        row=row,
        setting=name,
        ms_per_token=1000 * seconds / max(found.new_tokens, 1),
        nll=q.nll,
        entropy=q.entropy,
        length=q.length,
        empty=q.empty,
        tokens_per_pass=found.tokens_per_pass,
        example=texts[0],
      )
    )
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in out[-1].items()}, flush=True)
  return out


def draw(found, path, title):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  fig, axes = plt.subplots(figsize=(7.5, 4.6), dpi=120)
  for (row, label), colour, marker in zip(LABELS.items(), ("#0072B2", "#D55E00", "#009E73"), "osD"):
    here = [p for p in found if p["row"] == row]
    if not here:
      continue
    axes.plot(
      [p["ms_per_token"] for p in here],
      [p["nll"] for p in here],
      marker=marker,
      color=colour,
      label=label,
      linewidth=1,
      markersize=5,
    )
    for p in here:
      axes.annotate(
        p["setting"],
        (p["ms_per_token"], p["nll"]),
        xytext=(5, 4),
        textcoords="offset points",
        fontsize=7,
        color=colour,
      )
  axes.set(
    xscale="log", xlabel="ms per token", ylabel="NLL per token under the judge (nats)", title=title
  )
  axes.grid(True, color="0.9", linewidth=0.8)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  axes.legend(frameon=False)
  fig.tight_layout()
  fig.savefig(path)


def write(found, args) -> None:
  from jaxlm.experiments.runner import provenance

  stem, origin = pathlib.Path(args.out), provenance()
  stem.parent.mkdir(parents=True, exist_ok=True)
  draw(found, stem.with_suffix(".png"), "Figure 6: time per token against likelihood")
  stem.with_suffix(".json").write_text(
    json_text.dumps({"points": found, **origin}, indent=1) + "\n"
  )
  lines = [
    "# Insertion language models, Figure 6",
    "",
    f"{args.samples} unconditional samples a point.",
    "",
    "| model | setting | ms per token | NLL | entropy | length | tokens per pass |",
    "| --- | --- | ---: " + "| ---: " * 4 + "|",
  ]
  lines += [
    f"| {LABELS[p['row']]} | {p['setting']} | {p['ms_per_token']:.3f} | {p['nll']:.3f} | {p['entropy']:.3f} | "
    f"{p['length']:.1f} | {p['tokens_per_pass']:.2f} |"
    for p in found
  ]
  lines += [
    "",
    f"![time per token against NLL]({stem.name}.png)",
    "",
    "## Made by",
    "",
    f"    {origin['command']}",
    "",
    f"{origin['date']}, revision {origin['revision']}, Python {origin['python']}, "
    + ", ".join(f"{k} {v}" for k, v in origin["versions"].items())
    + f"; {origin['device']}.",
    "",
  ]
  stem.with_suffix(".md").write_text("\n".join(lines))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--runs", default="runs/ilm-text/smoke")
  parser.add_argument("--out", required=True)
  parser.add_argument("--samples", type=int, default=128)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()

  def folder(row):
    return pathlib.Path(args.runs) / row / "seed0"

  judge, found = judge_of(folder("judge")), []
  for row in LABELS:
    if (folder(row) / "config.json").exists():
      found += points(row, *load(folder(row)), judge, args.samples, args.seed)
    else:
      print(f"{folder(row)} is no run folder: {LABELS[row]} is left out")
  write(found, args)


if __name__ == "__main__":
  main()
