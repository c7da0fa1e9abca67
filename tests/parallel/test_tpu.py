"""Compiler options of TPUs."""

import jax
import numpy as np

from jaxlm.parallel.tpu import OPTIONS, compiler_options
from jaxlm.preflight.chips import CHIPS


def test_every_option_states_a_reason_and_every_chip_of_preflight_has_its_own():
  assert {chip.device_kind for chip in CHIPS.values()} == set(OPTIONS)
  assert all(
    name.startswith("xla_") and len(reason) > 20
    for rows in OPTIONS.values()
    for name, _, reason in rows
  )


def test_other_devices_have_none_and_the_switch_turns_them_off():
  assert compiler_options(jax.devices()[0].device_kind) == {}
  assert compiler_options("TPU v5", {})["xla_tpu_prefer_async_allgather_to_allreduce"] == "true"
  assert compiler_options("TPU v5", {"JAXLM_COMPILER_OPTIONS": "off"}) == {}


def test_the_trainers_own_programs_carry_them(monkeypatch):
  """Not only preflight: what is compiled ahead of time is what will run."""
  from jaxlm.training import step

  seen = []
  real = jax.jit
  monkeypatch.setattr(
    step.jax,
    "jit",
    lambda f, **kw: (
      seen.append(kw.get("compiler_options")) or real(f, **{**kw, "compiler_options": None})
    ),
  )
  monkeypatch.setattr(step, "compiler_options", lambda kind: {"kind": kind})
  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.preflight.compile import abstract_batch
  from jaxlm.training.config import load_config, run_config

  cfg = run_config(load_config("configs/carope/tiny.py", {}))
  mesh = make_mesh(cfg.mesh, list(np.array(jax.devices())))
  step.build_program(cfg, mesh, abstract_batch(cfg))
  assert seen.count({"kind": jax.devices()[0].device_kind}) == 3  # train, eval, init
