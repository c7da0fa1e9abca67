"""A seed is a whole number in [0, 2^32), wherever one is read: JAX's keys would cut off the rest,
NumPy's would not.
"""

import pathlib
import re
import sys

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.config import ConfigError, check_seed
from jaxlm.data import DATA
from jaxlm.generation.answers import Answering
from jaxlm.training.config import load_config, run_config

sys.path.insert(0, str(pathlib.Path(__file__).parent / "training"))
import tiny_run  # noqa: E402

WRONG = [-1, 2**32, 2**32 + 7, 2**63, -(2**31)]
DATA_KINDS = {
  "bigram": dict(batch_size=2, seq_len=8),
  "star_graphs": dict(batch_size=2),
  "zebra": dict(batch_size=2),
  "diagnostic": dict(batch_size=2, task="vowel_removal"),
  "needles": dict(batch_size=2, seq_len=128),
  "text": dict(batch_size=2, seq_len=16, source="mini:en"),
  "scenes": dict(batch_size=2, size=8),
}


@pytest.mark.parametrize("seed", WRONG)
def test_a_seed_outside_32_bits_is_refused_with_its_range(seed):
  with pytest.raises(ConfigError, match=f"seed = {seed}: wanted 0 or more, at most 4,294,967,295"):
    check_seed(seed)
  with pytest.raises(ConfigError, match=f"^seed = {seed}: wanted 0 or more"):
    run_config(load_config(tiny_run.config(seed=seed)))
  with pytest.raises(ConfigError, match=f"seed = {seed}: wanted"):
    Answering(max_len=4, seed=seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.uint32(2**32 - 1), np.int64(5)])
def test_the_first_and_the_last_seed_are_taken_and_differ(seed):
  assert (
    check_seed(seed) == seed
    and run_config(load_config(tiny_run.config(seed=int(seed)))).seed == seed
  )

  def data(seed):
    return jax.random.key_data(jax.random.key(seed))

  assert seed == 0 or not np.array_equal(data(seed), data(0))


@pytest.mark.parametrize("seed", [1.0, True, "1"])
def test_what_is_no_whole_number_is_no_seed(seed):
  with pytest.raises(ConfigError, match="wanted int"):
    check_seed(seed)


@pytest.mark.parametrize("kind", DATA_KINDS)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_data_refuse_a_seed_that_the_model_would_read_as_another(kind, seed):
  data = DATA.build(dict(kind=kind) | DATA_KINDS[kind])
  with pytest.raises(ConfigError, match=f"seed = {seed}: wanted"):
    next(iter(data.build("train", seed=seed)))


def test_the_flag_of_generate_is_refused_before_a_run_is_read(tmp_path, capsys):
  assert main(["generate", "--run", str(tmp_path), "--prompt", "a", "--seed", "-1"]) == 2
  assert "--seed = -1: wanted 0 or more, at most 4,294,967,295" in capsys.readouterr().err


def test_every_key_of_the_library_is_made_of_a_checked_seed():
  checked = re.compile(r"random\.key\((0|(self|cfg|answering)\.seed|check_seed\(\w+\))\)")
  root = pathlib.Path(jaxlm.__file__).parent
  wrong = [
    f"{path.relative_to(root)}: {line.strip()}"
    for path in root.rglob("*.py")
    if "golden" not in path.parts
    for line in path.read_text().splitlines()
    if "random.key(" in line and not checked.search(line)
  ]
  assert not wrong, "\n".join(wrong)
