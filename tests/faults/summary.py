"""The counts of a run of the fault tests, kept in docs/faults.json and shown in docs/faults.md.

A part replaces its own rows and leaves the others' where they are, each with its revision, date and
processor.
"""

import json
import os
import pathlib
import platform
import time

from jaxlm.training.provenance import revision

REVISION = revision()  # before this run rewrites the page

DOCS = pathlib.Path(__file__).parents[2] / "docs"
HEAD = """# Faults

What the tests of `tests/faults/` have done to jaxlm and what came of it. `make test-faults` writes this page and
[faults.json](faults.json) anew. A kill is SIGKILL of a real process; damage is of files on disk. "Wrong" counts what must not be:
a bit that differs, a wrong weight, a traceback, a partial output.

| part | case | tried | wrong | what came of it | revision | date | processor |
| --- | --- | ---: | ---: | --- | --- | --- | --- |
"""


def processor() -> str:
  """The name of the CPU and how many there are."""
  info = pathlib.Path("/proc/cpuinfo")
  names = (
    [
      line.partition(":")[2].strip()
      for line in info.read_text().splitlines()
      if line.startswith("model name")
    ]
    if info.exists()
    else []
  )
  return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def record(part: str, case: str, tried: int, wrong: int, outcomes: dict) -> None:
  """Keeps one row. outcomes: {what: how often}.

  Nothing is written when JAXLM_FAULTS_SUMMARY is 0.
  """
  if os.environ.get("JAXLM_FAULTS_SUMMARY") == "0":
    return
  file = DOCS / "faults.json"
  rows = json.loads(file.read_text()) if file.exists() else []
  row = {
    "part": part,
    "case": case,
    "tried": tried,
    "wrong": wrong,
    "outcomes": {str(k): outcomes[k] for k in sorted(outcomes, key=str)},
    "revision": REVISION,
    "date": time.strftime("%Y-%m-%d"),
    "processor": processor(),
  }
  rows = sorted(
    [old for old in rows if (old["part"], old["case"]) != (part, case)] + [row],
    key=lambda r: (r["part"], r["case"]),
  )
  DOCS.mkdir(exist_ok=True)
  file.write_text(json.dumps(rows, indent=1) + "\n")
  lines = [
    f"| {r['part']} | {r['case']} | {r['tried']:,} | {r['wrong']} | {', '.join(f'{what} {n:,}' for what, n in r['outcomes'].items())} | "
    f"{r['revision']} | {r['date']} | {r['processor']} |"
    for r in rows
  ]
  (DOCS / "faults.md").write_text(HEAD + "\n".join(lines) + "\n")
