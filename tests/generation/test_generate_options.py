"""`jaxlm generate` with a draft, a processor and a constraint."""

import flax.linen as nn
import jax
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation.command import main
from jaxlm.models.base import init
from jaxlm.training.config import load_config, run_config

MODEL = dict(
  kind="decoder", vocab_size=257, d_model=16, num_layers=1, mixer=dict(kind="attention", num_heads=2),
  position=dict(kind="rope"),
)  # fmt: skip


def config(**data):
  return dict(
    seed=0,
    model=MODEL,
    objective=dict(kind="next_token"),
    data=dict(kind="text", source="mini:udhr/eng", seq_len=16, batch_size=2) | data,
    optimizer=dict(kind="adamw", learning_rate=1e-3),
    schedule=dict(kind="constant"),
    train=dict(steps=1),
  )


@pytest.fixture
def runs(tmp_path, write_run):
  def make(name, seed, **data):
    written = config(**data)
    model = run_config(load_config(written)).model
    params = nn.unbox(jax.jit(lambda: init(model, jax.random.key(seed)))())
    return str(write_run(tmp_path / name, written, {1: params}))

  return make


def said(capsys, *args) -> str:
  main([*args, "--max_new_tokens", "4", "--temperature", "0"])
  return capsys.readouterr().out


def test_a_draft_changes_no_answer_and_what_cannot_be_meant_is_refused(runs, capsys):
  target, draft = runs("target", 0), runs("draft", 1)
  begin = ["--run", target, "--prompt", "ab"]
  plain = said(capsys, *begin)
  assert said(capsys, *begin, "--draft", draft, "--num_draft", "2") == plain
  flat = said(capsys, *begin, "--process.kind=add", "--process.words=z", "--process.value=100")
  assert flat.startswith("abzzzz") and flat != plain
  with pytest.raises(ConfigError, match="drafts nothing"):
    _run(*begin, "--draft", draft, "--algorithm", "beam")
  with pytest.raises(ConfigError, match="give --draft=RUN"):
    _run(*begin, "--algorithm", "tree")
  with pytest.raises(ConfigError, match="'zz' is not one token"):
    _run(*begin, "--process.kind=add", "--process.words=zz", "--process.value=1")
  with pytest.raises(ConfigError, match="give --constraint=REGEX"):
    _run(*begin, "--algorithm", "constrained")
  other = runs("other", 1, tokenizer=dict(kind="bytes", separator=254))
  with pytest.raises(ConfigError, match="has the tokenizer .* and --draft="):
    _run(*begin, "--draft", other)


def _run(*args):
  """The command without what turns errors into exits."""
  command = getattr(main, "__wrapped__", main)
  return command(list(args))
