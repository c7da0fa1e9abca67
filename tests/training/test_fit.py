"""Model, objective and data that do not fit are refused when the configuration is read, by a
sentence that names both.
"""

import dataclasses
import itertools
import pathlib

import pytest

from jaxlm.config import ConfigError
from jaxlm.data import DATA
from jaxlm.data.base import BATCH_FORMS, DataConfig
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.tasks.star_graphs import StarGraphData
from jaxlm.models import MODELS
from jaxlm.models.base import ModelConfig
from jaxlm.objectives import OBJECTIVES
from jaxlm.objectives.base import Objective
from jaxlm.training.config import load_config, run_config
from jaxlm.training.run import flops_per_token, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.py")) + [
  f"{CONFIGS}/ilm/star_easy.py:{form}"
  for form in ("causal", "masked_diffusion", "insertion_transformer")
]


def NAMED(kinds):
  return [kind for kind, target in kinds.table.items() if target.startswith("jaxlm.")]


# One configuration for each model; together they have every objective.
MODEL = {
  "decoder": "carope/tiny.py",
  "skip_decoder": "carope/tiny.py",
  "insertion": "ilm/star_easy.py",
  "masked_diffusion": "ilm/star_easy.py:masked_diffusion",
  "encoder_decoder": "mrt5/smoke.py",
  "hnet": "hnet/tiny.py",
  "lact_nvs": "lact/nvs_toy.py",
}
OBJECTIVE = {
  "next_token": {},
  "next_byte": {},
  "insertion": {},
  "insertion_transformer": {},
  "masked_diffusion": {},
  "sequence_to_sequence": {},
  "view_synthesis": {},
  "distillation": {"teacher": "runs/teacher"},
  "block_diffusion": {"mask": 255},
  "confusion": {"hidden": (1, 2, 3, 4, 5), "begin": 0},
  "decorrelation": {},
}


def mapping(file):
  return load_config(f"{CONFIGS}/{file}").to_dict()


def test_every_registered_part_declares_what_it_needs():
  for kinds, base in ((MODELS, ModelConfig), (DATA, DataConfig), (OBJECTIVES, Objective)):
    assert all(issubclass(kinds.cls(kind), base) for kind in NAMED(kinds))
  assert set(MODEL) == set(NAMED(MODELS)) and set(OBJECTIVE) == set(NAMED(OBJECTIVES))
  scored = {MODELS.cls(kind).scores for kind in NAMED(MODELS)}
  for kind in NAMED(OBJECTIVES):
    assert OBJECTIVES.cls(kind).scores in scored and OBJECTIVES.cls(kind).batch_form in BATCH_FORMS


@pytest.mark.parametrize("model, objective", list(itertools.product(MODEL, OBJECTIVE)))
def test_an_objective_that_a_model_cannot_serve_is_refused(model, objective):
  config = mapping(MODEL[model])
  config["model"]["kind"] = model
  if MODELS.cls(model).scores == OBJECTIVES.cls(objective).scores:
    return
  config["objective"] = {"kind": objective, **OBJECTIVE[objective]}
  with pytest.raises(ConfigError) as error:
    run_config(config)
  said = str(error.value)
  assert repr(model) in said and repr(objective) in said and "\n" not in said
  fitting = [
    kind for kind in NAMED(OBJECTIVES) if OBJECTIVES.cls(kind).scores == MODELS.cls(model).scores
  ]
  assert all(kind in said.split("objectives of this model:")[1] for kind in fitting)


@pytest.mark.parametrize(
  "file, data, said",
  [
    (
      "mrt5/smoke.py",
      dict(kind="star_graphs", batch_size=4),
      "data.kind from: diagnostic, span_corruption",
    ),
    ("carope/tiny.py", dict(kind="star_graphs", batch_size=4), "data.form = 'causal'"),
    (
      "ilm/star_easy.py",
      dict(kind="star_graphs", batch_size=4, form="causal"),
      "data.form = 'insertion'",
    ),
    (
      "ilm/star_easy.py:insertion_transformer",
      dict(kind="star_graphs", batch_size=4),
      "data.form = 'insertion_transformer'",
    ),
    (
      "ilm/star_easy.py",
      dict(kind="text", source="mini:en", seq_len=16, batch_size=4),
      "passages, zebra with data.form = 'insertion'",
    ),
    (
      "lact/nvs_toy.py",
      dict(kind="text", source="mini:en", seq_len=16, batch_size=4),
      "data.kind from: scenes",
    ),
    ("hnet/tiny.py", dict(kind="scenes", batch_size=4), "data.kind from: backcopy, bigram"),
  ],
)
def test_data_of_another_form_are_refused_with_what_would_fit(file, data, said):
  with pytest.raises(ConfigError) as error:
    run_config(mapping(file) | {"data": data})
  assert said in str(error.value) and "objective.kind" in str(error.value)


@pytest.mark.parametrize(
  "form, key", [("masked_diffusion", "mask"), ("insertion_transformer", "eos")]
)
def test_a_special_token_is_the_data_s_to_name_and_the_objective_s_to_ask_for(
  form, key, monkeypatch
):
  file = f"{CONFIGS}/ilm/star_easy.py:{form}"
  with pytest.raises(ConfigError, match=f"there is no --config.objective.{key} any more: the data"):
    load_config(file, {f"objective.{key}": 3})
  with pytest.raises(ConfigError, match=f"there is no 'objective.{key}' any more: the data"):
    run_config(mapping(f"ilm/star_easy.py:{form}") | {"objective": {"kind": form, key: 3}})
  without = SpecialTokens(pad=0, bos=1, cls=2)
  monkeypatch.setattr(StarGraphData, "special_tokens", without)
  with pytest.raises(ConfigError, match=f"objective.kind = '{form}' needs a {key} token"):
    run_config(load_config(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(pathlib.Path(f).parts[-2:]))
def test_training_flops_of_every_config_are_counted_without_data_or_arrays(file):
  cfg = run_config(load_config(str(file)))
  assert 0 < flops_per_token(cfg) < float("inf")


def test_masked_diffusion_flops_are_those_of_its_weights_and_of_its_attention():
  cfg = run_config(load_config(f"{CONFIGS}/ilm/star_easy.py:masked_diffusion"))
  D, F, C, V, L, T = 192, 768, 96, 28, 4, 36
  layer = 4 * D * D + 2 * D * F + 6 * C * D
  matrices = L * layer + 2 * C * D + (256 * C + C * C) + D * V
  biases = L * 6 * D + 2 * D  # of two dimensions: counted, and 0.6 % here
  assert flops_per_token(cfg) == pytest.approx(
    3 * (2 * matrices + L * 4 * D * T), rel=2 * biases / matrices
  )


def test_view_synthesis_flops_are_counted_in_the_traced_pass_and_grow_with_the_layers():
  def at(layers):
    return flops_per_token(
      run_config(load_config(f"{CONFIGS}/lact/nvs_toy.py", {"model.num_layers": layers}))
    )

  cfg = run_config(load_config(f"{CONFIGS}/lact/nvs_toy.py"))
  one = at(2) - at(1)
  assert at(3) - at(2) == pytest.approx(one)
  D = cfg.model.d_model
  least = 6 * (
    4 * D * D + 2 * cfg.model.mlp.d_ff * D
  )  # attention's and the MLP's weights, per token
  assert least / cfg.model.patch**2 < one < 10 * least / cfg.model.patch**2


@pytest.mark.parametrize(
  "file",
  ["ilm/star_easy.py:masked_diffusion", pytest.param("lact/nvs_toy.py", marks=pytest.mark.slow)],
)
def test_a_run_on_a_device_of_known_peak_reports_its_utilisation(file, tmp_path, monkeypatch):
  monkeypatch.setattr("jaxlm.training.run.peak_flops", lambda kind: 1e12)
  small = {
    "train.steps": 2,
    "train.log_every": 1,
    "train.save_every": 0,
    "eval.num_tokens": 1,
    "eval.every": 0,
    "data.batch_size": 8,
  }
  small |= {"model.num_layers": 1, "model.d_model": 32} | (
    {"model.head_dim": 16, "data.size": 8}
    if "nvs" in file
    else {"model.num_heads": 2, "data.rows": 64, "data.eval_rows": 2}
  )
  done = train(f"{CONFIGS}/{file}", tmp_path / "run", small, quiet=True)
  assert 0 < done.metrics["mfu"] < 1


def test_bases_declare_no_fields():
  assert not any(dataclasses.is_dataclass(base) for base in (ModelConfig, DataConfig))
