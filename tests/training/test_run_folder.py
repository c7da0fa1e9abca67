"""A run is a folder: resumed exactly, refused when it is another run, honest about damage and full
disks.
"""

import dataclasses
import errno
import functools
import gc
import json
import pathlib
import re
import shutil
import signal

import jax
import ml_dtypes  # noqa: F401  (bfloat16 for NumPy)
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoint import checksums as checksum_module
from jaxlm.checkpoint.checksums import checksums, differing
from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.opening import initial_params, open_model
from jaxlm.checkpoint.reading import restore_params
from jaxlm.checkpoint.steps import Checkpoints
from jaxlm.config import ConfigError
from jaxlm.objectives.buckets import smallest_fitting
from jaxlm.parallel.mesh import MeshConfig, make_mesh
from jaxlm.training import command, loop, metrics
from jaxlm.training import run as run_module
from jaxlm.training.config import run_config
from jaxlm.training.loop import NonFinite, one_step
from jaxlm.training.run import train
from jaxlm.training.step import build_program

MESH = {"mesh.fsdp": 4, "mesh.data": 2}
SAVING = {"train.save_every": 2, "train.keep_last": 3, "train.ema_decay": 0.9} | MESH


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
  """Runs of this file that compute the same share a program; that a new process compiles the same
  one is proved by the tests with real processes."""

  @functools.cache
  def build(cfg, mesh, batch):
    return build_program(cfg, mesh, dict(batch))

  def shared(cfg, mesh, batch, *, frozen):
    assert not frozen
    computed = dataclasses.replace(
      cfg,
      eval=type(cfg.eval)(),
      train=dataclasses.replace(
        cfg.train,
        save_every=0,
        keep_last=1,
        max_skipped=1,
        log_every=1,
        profile=None,
        steps=cfg.train.steps if cfg.schedule.needs_num_steps else 1,
      ),
    )
    return dataclasses.replace(build(computed, mesh, tuple(sorted(batch.items()))), cfg=cfg)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_module, "build_program", shared)
    yield


def run(folder, **overrides):
  return train(tiny_run.config(**SAVING | overrides), folder, quiet=True)


def test_the_bucket_of_the_next_step_is_part_of_the_checkpoint(tmp_path, monkeypatch):
  begun = []
  real = run_module.run_steps

  def seen(*args, bucket, **options):
    return begun.append(bucket) or real(*args, bucket=bucket, **options)

  monkeypatch.setattr(run_module, "run_steps", seen)
  monkeypatch.setattr(
    tiny_run.TinyBuckets,
    "next_bucket",
    lambda self, fit, state, buckets: smallest_fitting(fit.need_S, buckets),
  )
  options = {"objective.kind": "tiny_buckets", "schedule": "constant", "eval.every": 0}
  run(tmp_path, **options, **{"train.steps": 2})
  run(tmp_path, **options, **{"train.steps": 3})
  assert begun[0] == 0 and begun[1] > 0


def assert_equal(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of 6 steps, saved at 2, 4 and 6, evaluated at 3 and 6."""
  folder = tmp_path_factory.mktemp("runs") / "whole"
  return run(folder, **{"eval.every": 3, "eval.lengths": ()})


def copy_until(whole, folder, step):
  """The run folder as it was after `step`, with what an interrupted process had written beyond it."""
  shutil.copytree(whole.workdir, folder)
  for later in (folder / "checkpoints").iterdir():
    if int(later.name) > step:
      shutil.rmtree(later)
  (folder / "result.json").unlink()
  return folder


def test_the_folder_holds_what_is_needed_to_know_what_ran(whole):
  files = {path.name for path in pathlib.Path(whole.workdir).iterdir()}
  assert {
    "config.json",
    "run.json",
    "metrics.jsonl",
    "events",
    "checkpoints",
    "curves.png",
    "result.json",
  } <= files
  config = json.load(open(f"{whole.workdir}/config.json"))
  assert (
    config["optimizer"]["kind"] == "adamw" and config["optimizer"]["eps"] == 1e-8
  )  # defaults are written out
  (start,) = json.load(open(f"{whole.workdir}/run.json"))
  assert (
    start["versions"]["jax"] == jax.__version__
    and start["devices"] == "8 x cpu"
    and start["revision"]
  )
  records = metrics.read(whole.workdir)
  assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
  assert [r["step"] for r in records if "eval/loss" in r] == [3, 6]
  assert json.load(open(f"{whole.workdir}/result.json"))["finished"] and whole.finished


def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, tmp_path):
  resumed = run(copy_until(whole, tmp_path / "r", 2), **{"eval.every": 3})
  assert_equal(resumed.params, whole.params)
  assert_equal(resumed.ema, whole.ema)

  def plain(folder):
    return [
      {k: v for k, v in r.items() if k not in ("tokens_per_s", "step_s", "goodput")}
      for r in metrics.read(folder)
    ]

  assert plain(resumed.workdir) == plain(whole.workdir)  # no step twice, none missing


def test_a_new_run_begins_with_the_parameters_of_another_if_they_fit(whole):
  def like(x, **more):
    return jax.ShapeDtypeStruct(**dict(shape=x.shape, dtype=x.dtype, sharding=x.sharding) | more)

  assert_equal(initial_params(whole.workdir, jax.tree.map(like, whole.params)), whole.params)
  with pytest.raises(ConfigError, match="does not fit the model in .* parameters"):
    initial_params(
      whole.workdir, jax.tree.map(lambda x: like(x, shape=(*x.shape, 1)), whole.params)
    )


def test_a_finished_run_only_answers(whole):
  before = metrics.read(whole.workdir)
  again = run(whole.workdir, **{"eval.every": 3})
  assert_equal(again.params, whole.params)
  assert metrics.read(whole.workdir) == before and again.metrics["loss"] == whole.metrics["loss"]


def test_a_run_goes_on_over_another_mesh(whole, tmp_path):
  resumed = run(
    copy_until(whole, tmp_path / "r", 4), **{"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 4}
  )
  # Two steps summed in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    jax.device_get(resumed.params),
    jax.device_get(whole.params),
  )


def test_parameters_alone_are_restored_equal_on_one_device_and_so_is_their_average(whole):
  opened = open_model(whole.workdir)
  assert_equal(opened.params, whole.params)
  assert (
    all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(opened.params))
    and opened.run["train"]["steps"] == 6
  )
  average, note, step, lines = restore_params(whole.workdir, ema=True)
  assert_equal(average, whole.ema)
  assert step == 6 and note["format"] == 2 and note["config"]["seed"] == 3 and not lines


def test_restoring_what_is_not_there_is_refused(whole, tmp_path):
  with pytest.raises(ConfigError, match=r"has no complete checkpoint of step 5; steps: 2, 4, 6"):
    restore_params(whole.workdir, step=5)
  with pytest.raises(ConfigError, match="is neither a run folder"):
    open_model(tmp_path)


def test_another_configuration_is_refused_and_the_keys_are_listed(whole):
  with pytest.raises(ConfigError, match="another configuration") as error:
    run(whole.workdir, **{"optimizer.learning_rate": 0.5, "data.seq_len": 16})
  assert "data.seq_len: 8 there, 16 now" in str(error.value)
  assert "optimizer.learning_rate: 0.01 there, 0.5 now" in str(error.value)


def test_more_steps_are_refused_where_the_schedule_depends_on_them_and_taken_where_not(
  whole, tmp_path
):
  with pytest.raises(
    ConfigError, match=r"train.steps = 6, not 8, and its schedule Cosine depends on that number"
  ):
    run(whole.workdir, **{"train.steps": 8})
  constant = {"schedule": "constant", "train.save_every": 0}
  run(tmp_path / "r", **constant, **{"train.steps": 2})
  assert run(tmp_path / "r", **constant, **{"train.steps": 3}).step == 3
  with pytest.raises(ConfigError, match="train.steps: 3 there, 2 now"):
    run(tmp_path / "r", **constant, **{"train.steps": 2})


def test_a_run_whose_data_was_refused_leaves_the_folder_to_the_next(tmp_path):
  for source in (
    "text:/no/such/file",
    "text:/none/there/either",
  ):  # the second answer is not about the first
    data = dict(kind="text", source=source, tokenizer=dict(kind="bytes"), seq_len=8, batch_size=8)
    with pytest.raises(ConfigError, match=f"{source}.*does not exist"):
      run(tmp_path / "r", data=data, **{"model.vocab_size": 257})


def test_new_refuses_a_run_and_a_foreign_folder_is_never_written_to(whole, tmp_path):
  with pytest.raises(ConfigError, match="holds a run already"):
    train(tiny_run.config(**SAVING), whole.workdir, new=True, quiet=True)
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(ConfigError, match="is not a run folder"):
    run(tmp_path)


def test_a_damaged_newest_checkpoint_is_named_set_aside_and_the_one_before_is_used(
  whole, tmp_path, capsys
):
  folder = copy_until(whole, tmp_path / "r", 4)
  for file in (folder / "checkpoints" / "4" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  resumed = train(tiny_run.config(**SAVING), folder)
  said = capsys.readouterr().err
  assert (
    f"checkpoint {folder}/checkpoints/4 cannot be read" in said and "resuming from step 2" in said
  )
  assert_equal(resumed.params, whole.params)
  assert (folder / "damaged" / "4").is_dir()


def test_one_flipped_bit_is_noticed_and_the_step_before_is_used(whole, tmp_path, capsys):
  folder = copy_until(whole, tmp_path / "r", 4)
  # A checkpoint whose storage notices nothing: the numbers of step 2 under the note of step 4.
  shutil.rmtree(folder / "checkpoints" / "4" / "state")
  shutil.copytree(folder / "checkpoints" / "2" / "state", folder / "checkpoints" / "4" / "state")
  with pytest.raises(
    CheckpointError,
    match=r"checkpoints/4 cannot be read \(the bytes of .* are not those that were written\).*other steps: 2",
  ):
    restore_params(folder, step=4)
  resumed = train(tiny_run.config(**SAVING), folder)
  assert "are not those that were written); moved to" in (said := capsys.readouterr().err)
  assert "resumed at step 2 in " in said
  assert_equal(resumed.params, whole.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_flipped_bit_changes_the_checksum_whatever_the_layout(dtype):
  x = np.random.default_rng(0).integers(0, 2, (8, 6)).astype(dtype)
  want = checksums({"a": x, "b": np.int32(-1)})
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  placed = jax.device_put(
    {"a": x, "b": np.int32(-1)},
    {"a": NamedSharding(mesh, PartitionSpec("fsdp")), "b": NamedSharding(mesh, PartitionSpec())},
  )
  assert checksums(placed) == want
  device = checksum_module._device_sums(placed["a"].sharding, checksum_module._device_sum)
  on_device = jax.device_get(device(jax.tree.leaves(placed)))
  assert [f"{high:08x}{low:08x}" for low, high in on_device.tolist()] == list(want.values())
  reversed_ = checksums({"a": x[::-1].copy()})["a"]
  assert reversed_ != want["a"] or np.array_equal(x, x[::-1])
  for bit in range(1 if dtype == "bool" else 8):
    flipped = x.copy()
    flipped.reshape(-1).view(np.uint8)[17] ^= 1 << bit
    assert differing(want, checksums({"a": flipped})) == ["a"]


@pytest.mark.parametrize(
  "devices, mesh",
  [
    (4, dict(data=1, fsdp=4)),
    (2, dict(data=2, fsdp=1)),
    (1, dict(data=1, fsdp=1)),
    (8, dict(data=1, fsdp=2, tensor=4)),
  ],
  ids=str,
)
def test_what_eight_devices_saved_is_equal_on_fewer_and_on_another_layout(whole, devices, mesh):
  cfg = run_config(tiny_run.config(**SAVING | {f"mesh.{k}": v for k, v in mesh.items()}))
  dataset = cfg.data.build("train", seed=cfg.seed)
  program = build_program(cfg, make_mesh(cfg.mesh, jax.devices()[:devices]), next(iter(dataset)))
  with Checkpoints(f"{whole.workdir}/checkpoints") as saved:
    iterator = iter(dataset)
    state, note, lines = saved.restore(program.state, iterator)
  assert_equal((state.params, state.ema), (whole.params, whole.ema))
  assert all(
    x.sharding.is_equivalent_to(want.sharding, x.ndim)
    for x, want in zip(jax.tree.leaves(state), jax.tree.leaves(program.state))
  )
  assert iterator.get_state() == note["data"] and re.fullmatch(
    r"resumed at step 6 in [\d.]+ s: state [\d.]+ s, data 0.0\d s", lines[-1]
  )


def test_a_half_written_checkpoint_is_never_chosen(whole, tmp_path):
  folder = copy_until(whole, tmp_path / "r", 4)
  (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "4.orbax-checkpoint-tmp")
  with Checkpoints(folder / "checkpoints") as saved:
    assert saved.steps() == [2]


def test_nothing_readable_is_an_error_that_touches_nothing(whole, tmp_path):
  folder = copy_until(whole, tmp_path / "r", 2)
  (folder / "checkpoints" / "2" / "state" / "_METADATA").write_text("{")
  with pytest.raises(
    CheckpointError, match=r"no checkpoint in .* can be read: .*checkpoints/2 cannot be read"
  ):
    run(folder)
  assert (folder / "checkpoints" / "2").is_dir()


def test_a_full_disk_says_so_and_leaves_the_earlier_checkpoints_whole(whole, tmp_path, monkeypatch):
  folder = copy_until(whole, tmp_path / "r", 2)

  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(ocp.JsonCheckpointHandler, "async_save", full)
    patch.setattr(ocp.JsonCheckpointHandler, "save", full)
    with pytest.raises(
      CheckpointError, match="the disk is full; the checkpoints of steps 2 are intact"
    ):
      run(folder)
  assert_equal(run(folder).params, whole.params)  # and with space again it goes on


def test_a_run_of_nans_stops_and_says_what_to_do(tmp_path):
  bad = {
    "objective.kind": "tiny_nan",
    "objective.first": 2,
    "train.max_skipped": 3,
    "train.steps": 20,
  }
  with pytest.raises(
    NonFinite,
    match=r"step 5: 3 steps in a row without a finite loss and gradient .*max_skipped = 3",
  ):
    run(tmp_path / "r", **bad)
  records = metrics.read(tmp_path / "r")
  assert [r["skipped"] for r in records if "loss" in r] == [0, 0, 1, 1, 1]


def test_debug_runs_on_one_device_and_points_at_the_first_nan(tmp_path):
  with pytest.raises(
    FloatingPointError,
    match=r"^step 2: invalid value \(nan\) .*, outside the layers \(tiny_run.py, line \d+\)",
  ):
    run(
      tmp_path / "r",
      **{"train.debug": True, "objective.kind": "tiny_nan", "objective.first": 1, "train.steps": 3},
    )


def test_a_second_ctrl_c_aborts_and_the_newest_checkpoint_is_whole(whole, tmp_path, monkeypatch):
  steps = iter(range(1, 9))

  def interrupted(*args):
    if next(steps) == 4:
      gc.disable()  # an exception inside a callback of the collector would be swallowed
      try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
      finally:
        gc.enable()
    return one_step(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop, "one_step", interrupted)
    run(tmp_path / "r")
  with Checkpoints(tmp_path / "r" / "checkpoints") as saved:
    assert saved.steps() == [2]
  assert_equal(run(tmp_path / "r").params, whole.params)


def test_a_trace_of_the_steps_asked_for_lies_in_the_run_folder(tmp_path):
  run(tmp_path / "r", **{"train.profile": (2, 3), "train.steps": 4, "schedule": "constant"})
  (trace,) = (tmp_path / "r" / "profile").rglob("*.xplane.pb")
  # One event per execution on each of the eight devices would be many more if later steps were in
  # it.
  assert trace.stat().st_size > 1000


class Store(MemoryFileSystem):
  """gs:// in memory, with what an object store cannot do left out."""

  store, pseudo_dirs = {}, [""]

  def open(self, path, mode="rb", **kwargs):
    assert "a" not in mode and "+" not in mode, f"an object cannot be appended to: {path}"
    return super().open(path, mode, **kwargs)

  def mv(self, *args, **kwargs):
    raise AssertionError("an object cannot be renamed")


def test_a_run_folder_in_an_object_store_holds_the_same(whole, tmp_path, monkeypatch):
  monkeypatch.setattr(
    epath.backend._FileSystemSpecBackend, "fs", lambda self, path: Store(skip_instance_cache=True)
  )
  # Orbax writes to object stores by itself, through Tensorstore; here it writes beside.
  monkeypatch.setattr(
    run_module,
    "Checkpoints",
    lambda folder, **kw: Checkpoints(tmp_path / str(folder).removeprefix("gs://bucket/r/"), **kw),
  )
  first = run("gs://bucket/r", **{"train.steps": 3, "schedule": "constant"})
  again = run("gs://bucket/r", **{"train.steps": 6, "schedule": "constant"})
  assert (first.step, again.step, again.workdir) == (3, 6, "gs://bucket/r")
  records = metrics.read("gs://bucket/r")
  assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
  names = {path.name for path in epath.Path("gs://bucket/r").iterdir()}
  assert names >= {
    "config.json",
    "run.json",
    "metrics.jsonl",
    "events",
    "curves.png",
    "result.json",
  }
  assert epath.Path("gs://bucket/r/curves.png").read_bytes().startswith(b"\x89PNG")
  assert len(json.loads(epath.Path("gs://bucket/r/run.json").read_text())) == 2
  with pytest.raises(ConfigError, match="gs://bucket/r holds a run with another configuration"):
    run("gs://bucket/r", **{"seed": 5})


def test_the_command_turns_refusals_into_one_paragraph_and_code_2(tmp_path, capsys):
  file = tmp_path / "config.py"
  file.write_text("def get_config():\n  return dict(model=dict(kind='tiny'))\n")
  assert command.main([f"--config={file}", f"--workdir={tmp_path / 'r'}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("jaxlm train: missing key 'data'") and "Traceback" not in error
  assert not (tmp_path / "r").exists()
