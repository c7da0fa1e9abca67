"""Everything that the tree writes as JSON is JSON."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_json_is_written_by_json_text_only():
  # Between processes of one run (`agree`, `rollcall`) Python reads what Python wrote, and NaN stays
  # a number. A config.json of Hugging Face may hold a bare Infinity (time_step_limit), which its
  # readers want as it is.
  exempt = {
    "jaxlm/json_text.py",
    "jaxlm/parallel/agree.py",
    "jaxlm/parallel/rollcall.py",
    "jaxlm/interop/companions.py",
    "jaxlm/interop/convert.py",
    "tpu/supervise.py",  # runs where jaxlm is not installed; writes times, counts and names
  }
  wrong = [
    f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
    for room in ("jaxlm", "experiments", "bench", "tpu", "configs")
    for path in (ROOT / room).rglob("*.py")
    if str(path.relative_to(ROOT)) not in exempt
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r"\bjson\.dumps?\(", line)
  ]
  assert not wrong, "\n".join(wrong)
