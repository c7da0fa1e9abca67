"""Every recipe of docs/data.md makes a store from a tiny file of the format that it names."""

import gzip
import json
import pathlib
import random
import re
import shlex

import pytest

from jaxlm.data.command import main
from jaxlm.data.shards import ShardedStore
from jaxlm.training.config import load_config, run_config

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
RECIPES = re.findall(r"^jaxlm data tokenize .*$", PAGE.partition("## Recipes")[2], re.MULTILINE)
rng = random.Random(0)
TEXTS = [f"document {i} " + "".join(rng.choices("ab cd", k=60)) for i in range(120)]


def write(source: str):
  """A file that the pattern of a source matches."""
  _, _, rest = source.partition(":")
  pattern, _, column = rest.partition("#")
  path = pathlib.Path(pattern.replace("**/", "part/").replace("*", "00000"))
  path.parent.mkdir(parents=True)
  lines = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(TEXTS))
  if path.name.endswith(".parquet"):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({column: TEXTS}), path)
  elif path.name.endswith(".gz"):
    path.write_bytes(gzip.compress(lines.encode()))
  else:
    assert path.name.endswith(".zst")
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def test_the_page_has_a_recipe_for_each_corpus_of_the_papers():
  named = {"fineweb_edu", "c4", "pile", "openwebtext", "long_data"}
  assert {re.search(r"--out=tokens/(\w+)", recipe)[1] for recipe in RECIPES} == named
  for config in re.findall(r"--config=(configs/\S+)", PAGE):
    assert run_config(load_config(str(ROOT / config)))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.rpartition("/")[2])
def test_the_recipe_makes_a_store(recipe, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  words = shlex.split(recipe)[2:]
  words = [word.replace("configs/", f"{ROOT}/configs/") for word in words]
  write(
    next(w for w in words if w.startswith("--config.data.source="))[len("--config.data.source=") :]
  )
  bytes_ = ["--config.data.tokenizer={'kind': 'bytes'}", "--processes=1", "--shards=2"]
  assert main([*words, *bytes_]) == 0
  out = next(w for w in words if w.startswith("--out="))[len("--out=") :]
  assert f"store:{tmp_path}/{out}" in capsys.readouterr().out
  total = sum(len(ShardedStore(out, split).starts) - 1 for split in ("train", "validation", "test"))
  assert total == len(TEXTS)
  assert main(["check", out]) == 0
