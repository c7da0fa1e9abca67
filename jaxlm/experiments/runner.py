"""Runs the rows of a table one by one into a work folder, and skips what is finished there.

The folder of a row is `<workdir>/<size>/<row>/seed<n>`: a run folder for a trained row, plus its
result, `measured.json` (`Table.result_file`), written last. Beside it stands `seed<n>-training.json`,
the records of the training (`jaxlm.experiments.record`).
"""

import hashlib
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.experiments import record
from jaxlm.experiments.table import Measured, Row, Scale, Table, Trained

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBED_MULTIPLES = (1, 2, 4)  # an evaluate_from row's overrides enter its identity at these


def override(config: Mapping, overrides: Mapping) -> dict:
  """The plain mapping with dotted keys set; a mapping replaces a whole subtree, a function is
  called with the mapping as it was before. Unknown keys raise ConfigError."""
  from jaxlm.training.config import load_config

  values = {key: value(config) if callable(value) else value for key, value in overrides.items()}
  return plain(load_config(config, values))


def resolve(table: Table, row: Row, scale: Scale, size: str, seed: int) -> dict:
  """The configuration that a row trains: file, then scale, then size, then row, then seed."""
  from jaxlm.training.config import load_config

  if row.computes:
    settings = {**scale.overrides, **scale.sizes[size], **row.settings, "seed": seed}
    return plain(settings)
  path, _, argument = (scale.configs.get(row.name) or scale.config or row.config).partition(":")
  if (
    not pathlib.Path(path).is_file() and (ROOT / path).is_file()
  ):  # a table may be run from anywhere
    path = str(ROOT / path)
  config = plain(load_config(path + (f":{argument}" if argument else "")))
  for overrides in (scale.overrides, scale.sizes[size], row.overrides, {"seed": seed}):
    config = override(config, overrides)
  return config


def plain(config: Mapping) -> dict:
  """JSON's view of a configuration: dicts and lists, so that one from a file equals one read back."""
  return json.loads(config.to_json() if hasattr(config, "to_json") else json_text.dumps(config))


def folder(workdir, size: str, row: str, seed: int) -> pathlib.Path:
  return pathlib.Path(workdir) / size / row / f"seed{seed}"


def run_rows(
  table: Table,
  scale_name: str,
  *,
  rows: Sequence[str],
  seeds: Sequence[int],
  workdir,
  train: Callable[[dict, pathlib.Path], Trained] | None = None,
  restore: Callable[[pathlib.Path], Trained] | None = None,
  say: Callable[[str], None] = print,
) -> dict[tuple[str, str, int], str]:
  """Runs what is not finished. Returns {(size, row, seed): message} of those that failed; the
  others went on.

  train(config, folder) trains or resumes; restore(folder) reads a finished run back; both default
  to jaxlm.training.
  """
  train, restore = train or _train, restore or _restore
  scale, failed = table.scales[scale_name], {}
  wanted = [table.row(name) for name in rows]
  order = in_order(table, wanted)
  for seed in seeds:  # the whole table at one seed before the next
    for size in scale.sizes:
      last: dict[str, Trained] = {}
      for row in order:
        where = " ".join(filter(None, (size, row.name, f"seed {seed}")))
        try:
          path = folder(workdir, size, row.name, seed)
          source = table.row(row.evaluate_from) if row.evaluate_from else row
          config = resolve(table, source, scale, size, seed)
          identity = identity_of(table, row, scale, size, seed)
          if (done := _finished(path / table.result_file, identity)) is not None:
            say(f"{where}: finished before, {_short(done['numbers'])}")
            continue
          start = time.time()
          if row.evaluate_from:
            origin = folder(workdir, size, source.name, seed)
            trained = last.get(source.name) or (
              restore(origin) if _finished(origin / table.result_file, None) else None
            )
            if trained is None:
              raise ConfigError(
                f"row {source.name!r}, whose checkpoint it evaluates, has not finished"
              )
          elif row.computes:
            trained = Trained(config, None, str(path))
            with record.training(path), record.cost(record.made_by()) as evaluation:
              measured = table.measure(trained, lambda multiple: {})
          else:
            if row.begins_from:
              origin = folder(workdir, size, row.begins_from, seed)
              if not _finished(origin / table.result_file, None):
                raise ConfigError(
                  f"row {row.begins_from!r}, whose checkpoint it begins from, has not finished"
                )
              config = override(config, {"train.init_from": str(origin)})
            say(f"{where}: training in {path}")
            with record.training(path):
              trained = train(config, path)
            if any(r.evaluate_from == row.name for r in order):
              last[row.name] = trained
          if not row.computes:
            trained = trained._replace(settings=row.settings or {})
            with record.cost(record.made_by()) as evaluation:
              measured = table.measure(trained, row.overrides_at or (lambda multiple: {}))
          run = folder(workdir, size, source.name, seed)
          made = {"training": record.starts(run), "evaluation": evaluation}
          made |= {"trace": record.loss_trace(run)} if row is source else {}
          _write_result(path / table.result_file, identity, config, measured, scale_name, made)
          say(f"{where}: {_short(measured.numbers)}  ({time.time() - start:.0f} s)")
        except KeyboardInterrupt:
          raise
        except Exception as error:  # the other rows are run all the same
          failed[size, row.name, seed] = f"{type(error).__name__}: {error}"
          about = error if isinstance(error, ConfigError) else traceback.format_exc()
          say(f"{where}: failed, the others go on\n{about}")
  return failed


def in_order(table: Table, wanted: Sequence[Row]) -> list[Row]:
  """The rows that are run: in the table's order, but a checkpoint before those who begin from it or
  evaluate it, and made even if nobody asked for its own row. Rows that only evaluate come last.
  """
  needed = [r for row in wanted for r in (*table.before(row), row)]
  order: list[Row] = []
  for row in (r for r in table.rows if not r.evaluate_from and r in needed):
    order += [r for r in (*table.before(row), row) if r not in order]
  return order + [r for r in table.rows if r.evaluate_from and r in needed]


def results(table: Table, scale_name: str, workdir) -> dict[tuple[str, str, int], dict]:
  """{(size, row, seed): result} of everything finished in the work folder."""
  out = {}
  for size in table.scales[scale_name].sizes:
    for row in table.rows:
      for path in sorted(
        (pathlib.Path(workdir) / size / row.name).glob(f"seed*/{table.result_file}")
      ):
        out[size, row.name, int(path.parent.name.removeprefix("seed"))] = _read(path)
  return out


def provenance() -> dict:
  """Where and with what a report is made."""
  names = ("jax", "jaxlib", "flax", "optax", "numpy")
  return record.made_by() | {
    "python": sys.version.split()[0],
    "versions": {name: metadata.version(name) for name in names},
  }


def identity_of(table: Table, row: Row, scale: Scale, size: str, seed: int) -> str:
  """16 hexadecimal digits of a row's configuration, its evaluation's, those of the rows that it
  begins from, and the bytes of files that it reads (`text:`, `bytes:`, `array_record:`), which
  their owner may edit; other sources are made once.
  """
  from jaxlm.data.sources import open_corpus

  source = table.row(row.evaluate_from) if row.evaluate_from else row
  config = resolve(table, source, scale, size, seed)
  extra = (
    [override(config, row.overrides_at(m)) for m in PROBED_MULTIPLES] if row.overrides_at else []
  )
  extra += [resolve(table, before, scale, size, seed) for before in table.before(source)]
  extra += [dict(row.settings)] if row.settings and not row.computes else []
  for value in config.get("data", {}).values():
    for source in value if isinstance(value, (list, tuple)) else [value]:
      if str(source).startswith(("text:", "bytes:", "array_record:")):
        extra.append(open_corpus(source).fingerprint)
  return hashlib.sha256(json_text.dumps([config, extra], sort_keys=True).encode()).hexdigest()[:16]


def _read(path: pathlib.Path) -> dict:
  result = json.loads(path.read_text())
  return result | {
    name: json_text.number(result[name]) for name in ("numbers", "curves") if name in result
  }


def _finished(path: pathlib.Path, identity: str | None) -> dict | None:
  if not path.exists():
    return None
  result = _read(path)
  if identity is not None and result["identity"] != identity:
    raise ConfigError(
      f"{path.parent} holds this row's result under another configuration, or of another text; remove that folder to run it "
      f"again, or give another --workdir"
    )
  return result


def _write_result(path, identity, config, measured: Measured, scale: str, made: Mapping) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  result = dict(identity=identity, scale=scale, **measured._asdict(), config=config, **made)
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(json_text.dumps(result, indent=1))
  partial.rename(path)  # a result is whole or absent


def _short(numbers: Mapping[str, float]) -> str:
  return ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())


def _train(config: dict, path: pathlib.Path) -> Trained:
  import jax

  from jaxlm.training.run import Stopped, train

  jax.clear_caches()  # the last row's programs hold memory and are never met again
  result = train(config, str(path))
  if not result.finished:
    raise Stopped(result)
  return Trained(config, result.params, str(path))


def _restore(path: pathlib.Path) -> Trained:
  from jaxlm.checkpoint.opening import open_model

  opened = open_model(path)
  return Trained(opened.run, opened.params, str(path))
