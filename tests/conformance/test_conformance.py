"""Every registered part works with every other, or is refused in one sentence before it runs."""

import cases
import checks
import jax
import page
import pytest
import tiny

from jaxlm.data import DATA
from jaxlm.models import MODELS
from jaxlm.objectives import OBJECTIVES


def ident(case) -> str:
  return case.id


def test_each_model_objective_and_data_fit_or_are_refused_in_a_sentence():
  used = {"model": set(), "objective": set(), "data": set()}
  for case, refusal in page.outcomes():
    if refusal:
      assert checks.is_sentence(refusal), (case.id, refusal)
      assert case.config["objective"]["kind"] in refusal or case.config["model"]["kind"] in refusal
    else:
      used["model"].add(case.names[0])
      used["objective"].add(case.names[1])
      used["data"].add(case.names[2].split("/")[0])
  assert used == {
    "model": set(tiny.kinds_of(MODELS)),
    "objective": set(tiny.kinds_of(OBJECTIVES)),
    "data": set(tiny.kinds_of(DATA)),
  }


def test_the_page_is_current():
  with page.library_only():
    text = page.render()
  assert page.PAGE.read_text() == text, f"write docs/conformance.md: {page.COMMAND}"


def one_per_pair() -> list[cases.Case]:
  """Of each model and objective that fit, the first data that fit them."""
  found = {}
  for case, refusal in page.outcomes():
    if not refusal:
      found.setdefault(case.names[:2], case)
  return list(found.values())


def spread(pairs: list[cases.Case]) -> list:
  """The first pair of each model and of each objective; the others, which trace the same parts, are
  slow.
  """
  seen, out = set(), []
  for case in pairs:
    new = set(case.names[:2]) - seen
    out.append(case if new else pytest.param(case, marks=pytest.mark.slow))
    seen |= set(case.names[:2])
  return out


@pytest.mark.parametrize("case", spread(one_per_pair()), ids=ident)
def test_a_pair_that_fits_traces_counts_and_decodes(case, tmp_path):
  config = checks.with_teacher(case.config, tmp_path / "teacher", weights=False)
  checks.abstract_pass(checks.configured(config))


#: H-Net and encoder-decoders trace for seconds each.
NETWORKS = [pytest.param(case, marks=pytest.mark.slow) for case in cases.networks()]


@pytest.mark.parametrize(
  "case", [*cases.mixers(first=True), *cases.embeddings(), *NETWORKS], ids=ident
)
def test_a_part_is_refused_in_a_sentence_or_traces(case):
  found = checks.configured(case.config)
  if isinstance(found, str):
    assert checks.is_sentence(found), found
  else:
    checks.abstract_pass(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.all_cases(), ids=ident)
def test_a_part_is_refused_or_trains_evaluates_decodes_and_is_opened_again(case, tmp_path):
  found = checks.configured(case.config)
  if isinstance(found, str):
    pytest.skip(f"refused: {found}")
  jax.clear_caches()
  config = checks.with_teacher(case.config, tmp_path / "teacher", weights=True)
  checks.trains(checks.configured(config), config, tmp_path / "run")
