"""Measures of models that write texts: what judges say of samples, and of filled gaps, with entropy
and length beside.

A judge is given as `judge(workdir of the measured row) -> jaxlm.evaluation.judge.Judge`;
`trained_beside` is the row of the same table, and seed, that was trained for it.
"""

import json
import pathlib
from collections.abc import Callable, Mapping

from jaxlm.config import ConfigError
from jaxlm.evaluation.judge import Judge, change, quality
from jaxlm.experiments.table import Measured, Trained


def run_judge(folder) -> Judge:
  """A causal run on passages as a judge."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.evaluation.causal_judge import CausalJudge
  from jaxlm.training.config import run_config

  config, params = (opened := open_model(folder)).run, opened.params
  cfg = run_config(config)
  if cfg.data.batch_form != "causal":
    raise ConfigError(
      f"{folder} cannot judge: its data have the form {cfg.data.batch_form!r}, wanted 'causal'"
    )
  return CausalJudge(cfg.model, params, cfg.data.load_tokenizer(), cfg.data.special_tokens.bos)


def trained_beside(row: str) -> Callable[[str], Judge]:
  """The judge that another row of the table trained, at the same size and seed."""

  def find(workdir: str) -> Judge:
    folder = pathlib.Path(workdir).parents[1] / row / pathlib.Path(workdir).name
    if (
      not (folder / "result.json").exists()
      or not json.loads((folder / "result.json").read_text())["finished"]
    ):
      raise ConfigError(
        f"the judge, row {row!r}, has not finished training in {folder}; run that row first"
      )
    return run_judge(folder)

  return find


def generated_texts(
  num_texts: int, judges: Mapping[str, Callable], *, of_data: tuple[str, ...] = (), **settings
) -> Callable:
  """Measure: `num_texts` samples from nothing under every judge, NAME -> function of the work
  folder.

  numbers, per judge: nll@NAME, entropy@NAME, length@NAME, empty@NAME, unknown@NAME. of_data: names
  of rows (judges) for which the test split's own texts are scored instead. settings: of
  `Answering`. The first texts are kept as `samples.txt` in the row's folder.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    cfg, params = _best(trained)
    if pathlib.Path(trained.workdir).parent.name in of_data:
      passages = cfg.data.passages("test")
      texts = [cfg.data.decode(passages[i]) for i in range(min(num_texts, len(passages)))]
    else:
      texts = sample_texts(cfg, params, num_texts, **settings)
    (pathlib.Path(trained.workdir) / "samples.txt").write_text("\n".join(texts[:100]) + "\n")
    numbers = {}
    for name, judge in judges.items():
      found = quality(judge(trained.workdir)(texts))
      numbers |= {
        f"{key}@{name}": value for key, value in found._asdict().items() if value == value
      }  # nan: absent
    return Measured(numbers, {}, {})

  return measure


def sample_texts(cfg, params, num_texts: int, **settings) -> list[str]:
  """Texts from nothing, by whatever the model's form is; masked diffusion fills all places, pads
  among them.
  """
  from jaxlm.data.forms import prompt
  from jaxlm.generation.answers import Answering

  data = cfg.data
  start = prompt([], data.special_tokens, data.form)
  answering = Answering(max_len=data.seq_len, seed=cfg.seed, **settings)
  found = answering.answer(
    cfg.model,
    params,
    data.form,
    data.special_tokens,
    [start] * num_texts,
    [data.seq_len - len(start)] * num_texts,
  )
  return [data.decode(row[len(start) :]) for row in found.sequences]


def filled_texts(
  num_texts: int,
  judges: Mapping[str, Callable],
  kinds: Mapping[str, Mapping],
  *,
  of_data: tuple[str, ...] = (),
  **settings,
) -> Callable:
  """Measure: gaps in `num_texts` test texts, filled. kinds: name -> fields of `InfillingSet`.

  numbers, per kind and judge: change in percent of nll, entropy and length, filled text against the
  text with its gaps closed (nll@KIND@NAME, ..), as the paper reports them. of_data: rows that stand
  for the untouched text. The first texts are kept as `filled.tsv`: kind, with the gaps closed,
  filled.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.data.infilling import InfillingSet
    from jaxlm.generation.answers import Answering
    from jaxlm.generation.infilling import infill

    cfg, params = _best(trained)
    data, numbers, lines = cfg.data, {}, []
    asked = {name: judge(trained.workdir) for name, judge in judges.items()}
    for kind, fields in kinds.items():
      examples = InfillingSet(data, **fields).examples("test", seed=cfg.seed, number=num_texts)
      if pathlib.Path(trained.workdir).parent.name in of_data:
        filled = [e.tokens for e in examples]
      else:
        # Room for more than was taken out: an insertion model does not know where to end, and is
        # not told.
        answering = Answering(max_len=data.seq_len * 5 // 4, seed=cfg.seed, **settings)
        filled = infill(cfg.model, params, data.form, data.special_tokens, examples, answering)
      before, after = (
        [data.decode(x) for x in rows] for rows in ([e.left for e in examples], filled)
      )
      lines += [f"{kind}\t{a}\t{b}" for a, b in zip(before[:30], after[:30])]
      for name, judge in asked.items():
        found = change(judge(before), judge(after))
        numbers |= {
          f"{key}@{kind}@{name}": 100 * getattr(found, key) for key in ("nll", "entropy", "length")
        }
        numbers[f"left_out@{kind}@{name}"] = found.left_out
    (pathlib.Path(trained.workdir) / "filled.tsv").write_text("\n".join(lines) + "\n")
    return Measured(numbers, {}, {})

  return measure


def _best(trained: Trained):
  """(configuration, parameters), averaged ones where the run kept them."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  return cfg, trained.params if cfg.train.ema_decay is None else open_model(
    trained.workdir, ema=True
  ).params
