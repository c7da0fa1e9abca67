"""The commands and the code of a page work when they are pasted in order, in a clone of the repository.

Training is cut to two steps and text to a few tokens; what a page says about numbers is measured elsewhere
(`bench/first_runs.py`). Commands that install, download or need a device are left out.
"""

import contextlib
import pathlib
import re
import shlex

import pytest

from jaxlm.cli import main

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OTHERS = ("make ", "pip ", ". .venv", "huggingface-cli ", "python ", "#")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))
SHORT = {
  "train": [
    "--config.train.steps=2",
    "--config.eval.num_tokens=1024",
    "--config.eval.every=0",
    "--config.train.log_every=1",
    "--quiet",
  ],
  "eval": ["--num_tokens=1024"],
}
#: What must be there before a page that does not make it itself.
BEFORE = {
  "docs/taps.md": [
    "jaxlm train --config=configs/carope/tiny.py --workdir=runs/tiny",
    "jaxlm train --config=configs/hnet/tiny.py --workdir=runs/hnet",
  ]
}
PAGES = ["README.md", "docs/start.md", "docs/evidence.md", *BEFORE] + [
  path.relative_to(ROOT).as_posix()
  for folder in ("howto", "systems")
  for path in sorted((DOCS / folder).glob("*.md"))
  if path.stem not in ("index", "own_part")  # own_part.md: tests/experiments/test_readme.py
]


def steps(page: pathlib.Path):
  """('sh', words) and ('python', code) of a page, in order."""
  for kind, text in BLOCK.findall(page.read_text()):
    if kind == "python":
      yield kind, text
      continue
    for line in text.replace("\\\n", " ").splitlines():
      if line.strip() and not line.startswith(OTHERS):
        yield kind, shlex.split(line, comments=True)


def shortened(words: list[str]) -> list[str]:
  """The same command over less."""
  command = words[1]
  if command == "generate":
    words = [re.sub(r"^\d{2,}$", "8", word) for word in words]
  return [*words[1:], *SHORT.get(command, [])]


def run(words: list[str]) -> int | None:
  """The exit code of a command; `> FILE` is what a shell makes of it."""
  if ">" not in words:
    return main(shortened(words))
  with open(words[words.index(">") + 1], "w") as file, contextlib.redirect_stdout(file):
    return main(shortened(words[: words.index(">")]))


@pytest.fixture
def clone(tmp_path, monkeypatch):
  """A folder with what a clone has, and nobody's data."""
  for name in ("configs", "experiments", "docs"):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / "tests").mkdir()
  (tmp_path / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
  (tmp_path / "books").mkdir()
  for i in range(30):
    (tmp_path / "books" / f"{i}.txt").write_text(f"Book {i}. Call me anything you like. " * 60)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "data"))
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_when_pasted(page, clone, capsys):
  done, scope = 0, {}
  for line in BEFORE.get(page, []):
    assert run(shlex.split(line)) == 0
  for kind, what in steps(ROOT / page):
    done += 1
    if kind == "python":
      exec(compile(what, page, "exec"), scope)
    elif what[1] in ("table", "reproduce") and "--list" not in what:
      continue  # a row cannot be cut; tests/experiments runs tables of its own
    else:
      assert run(what) in (0, None), what
  assert done


@pytest.mark.slow
@pytest.mark.parametrize(
  "page", [page for page in NOTEBOOKS if page.stem != "index"], ids=lambda page: page.stem
)
def test_a_notebook_runs(page, monkeypatch):
  matplotlib = pytest.importorskip("matplotlib")
  matplotlib.use("Agg")
  text = page.read_text()
  text = re.sub(r'"train.steps": \d+', '"train.steps": 2', text)
  text = re.sub(r'"schedule.warmup_steps": \d+', '"schedule.warmup_steps": 1', text)
  scope = {}
  for code in re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
    exec(compile(code.replace("16_384", "2_048"), page.name, "exec"), scope)
