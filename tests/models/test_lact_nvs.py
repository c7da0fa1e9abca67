"""View synthesis: rays, views that do not influence each other, reconstruct and render, toy scenes,
folders.
"""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.data.scenes import SceneData, centred
from jaxlm.kernels.phase import rotate
from jaxlm.layers.lact_video import VideoLaCTConfig, chunk_attention, num_chunks, rotation_3d
from jaxlm.models.lact_nvs import NVSConfig, patchify, pixels, rays, unpatchify, views_of
from jaxlm.objectives.view_synthesis import ViewSynthesis

DATA = SceneData(batch_size=2, num_inputs=3, num_targets=2, size=8, rows=2)
CONFIG = NVSConfig(d_model=16, num_layers=2, patch=4, head_dim=8, expansion=1.0, muon_steps=1)


@functools.cache
def setup():
  batch = next(iter(DATA.build("validation", seed=0, repeat=False)))
  model = CONFIG.build()
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *CONFIG.inputs(batch)))["params"]
  apply = jax.jit(lambda given, wanted: model.apply({"params": params}, given, wanted))
  return batch, model, params, apply


def test_target_views_do_not_see_each_other_and_all_inputs_count():
  batch, _, _, apply = setup()
  given, wanted = CONFIG.inputs(batch)
  image = apply(given, wanted)
  other = apply(
    given, wanted._replace(poses_BS44=jnp.asarray(wanted.poses_BS44).at[:, 1, 0, 3].add(0.3))
  )
  assert np.allclose(image[:, 0], other[:, 0], atol=1e-6) and not np.allclose(
    image[:, 1], other[:, 1], atol=1e-6
  )
  for view in range(3):
    changed = jnp.asarray(given.images_BSCYX).at[:, view].multiply(0.5)
    assert not np.allclose(image, apply(given._replace(images_BSCYX=changed), wanted), atol=1e-7)


def test_reconstruct_then_render_one_view_at_a_time_equals_one_pass():
  batch, model, params, apply = setup()
  given, wanted = CONFIG.inputs(batch)
  state = model.apply({"params": params}, given, method="reconstruct")
  for view in range(2):
    one = jax.tree.map(lambda x, view=view: x[:, view : view + 1], wanted)
    image = model.apply({"params": params}, one, state, 8, 8, method="render")
    np.testing.assert_allclose(image[:, 0], apply(given, wanted)[:, view], atol=1e-5)


def test_the_rays_of_the_model_are_those_that_cast_the_scene():
  """The ray of the pixel in which the origin is seen passes through the origin."""
  batch, *_ = setup()
  views = views_of(batch, "input")
  origin, direction = rays(views.intrinsics_BS4, views.poses_BS44, 8, 8)
  centre = direction[..., 3:5, 3:5].mean((-1, -2))  # cameras look at the origin
  to_origin = -views.poses_BS44[..., :3, 3]
  np.testing.assert_allclose(
    centre / np.linalg.norm(centre, axis=-1, keepdims=True),
    to_origin / np.linalg.norm(to_origin, axis=-1, keepdims=True),
    atol=1e-5,
  )
  channels = pixels(views, 8, 8)
  np.testing.assert_allclose(unpatchify(patchify(channels, 4), 4, 3, 8, 8), channels)


def test_larger_shapes_cover_more_of_the_same_scene():
  def row(scale):
    return SceneData(batch_size=1, size=16, rows=1, shape_scale=scale).build(
      "validation", seed=0, repeat=False
    )

  small, large = (next(iter(row(scale))) for scale in (1.0, 1.8))
  assert np.array_equal(small["input_poses"], large["input_poses"])

  def covered(batch):
    return (batch["input_images"].min(2) < 1).mean()

  assert covered(large) > 1.5 * covered(small)
  with pytest.raises(ConfigError, match="shape_scale = 0"):
    SceneData(batch_size=1, shape_scale=0.0)


def test_the_objective_reports_psnr_and_takes_a_perceptual_distance_after_its_start():
  batch, model, params, _ = setup()
  plain = ViewSynthesis()
  loss, metrics, *_ = plain.loss(model, params, batch, None, plain.init_state(), train=True)
  assert float(metrics["psnr"].mean()) > 0 and np.isclose(loss.mean(), metrics["mse"].mean())
  both = ViewSynthesis(perceptual=f"{__name__}:distance", perceptual_start=1)
  before, *_ = both.loss(model, params, batch, None, both.init_state(), train=True)
  after, *_ = both.loss(
    model, params, batch, None, both.update_state(both.init_state(), {}), train=True
  )
  assert np.isclose(before.mean(), loss.mean()) and np.isclose(after.mean(), loss.mean() + 0.25)


def distance(image, target):
  return jnp.full(image.shape[0], 0.25)


def test_folders_are_read_cropped_and_centred(tmp_path):
  from PIL import Image

  scene = tmp_path / "scene"
  scene.mkdir()
  frames = []
  for i in range(5):
    rgba = np.zeros((8, 16, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[..., 3] = 255 if i else 0  # the first is transparent: white
    Image.fromarray(rgba).save(scene / f"{i}.png")
    pose = np.eye(4)
    pose[0, 3] = i
    frames.append(
      dict(file_path=f"{i}.png", w2c=np.linalg.inv(pose).tolist(), fx=10.0, fy=10.0, cx=8.0, cy=4.0)
    )
  (scene / "opencv_cameras.json").write_text(json.dumps({"frames": frames}))
  data = SceneData(batch_size=1, num_inputs=3, num_targets=2, size=8, source=str(tmp_path))
  batch = next(iter(data.build("train", seed=0)))
  images = np.concatenate([batch["input_images"], batch["target_images"]], 1)[0]
  assert images.shape == (5, 3, 8, 8)
  assert sorted(round(float(x.mean()), 2) for x in images) == [0.33] * 4 + [1.0]
  assert np.allclose(
    batch["input_intrinsics"][0, 0], [10, 10, 4, 4]
  )  # the crop took 4 columns on the left
  poses = np.concatenate([batch["input_poses"], batch["target_poses"]], 1)[0]
  assert np.isclose(np.abs(poses[:, :3, 3]).max(), 1) and np.allclose(
    poses[:, :3, 3].mean(0), 0, atol=1e-6
  )
  with pytest.raises(DataError, match="5 views"):
    next(iter(SceneData(batch_size=1, num_inputs=9, source=str(tmp_path)).build("train", seed=0)))
  with pytest.raises(DataError, match="no such folder"):
    SceneData(batch_size=1, source=str(tmp_path / "none")).build("train", seed=0)


def test_views_of_a_folder_are_drawn_anew_in_training_and_once_for_validation(tmp_path):
  from PIL import Image

  for scene in "ab":
    (tmp_path / scene).mkdir()
    frames = []
    for i in range(8):
      Image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(tmp_path / scene / f"{i}.png")
      frames.append(
        dict(file_path=f"{i}.png", w2c=np.eye(4).tolist(), fx=4.0, fy=4.0, cx=2.0, cy=2.0)
      )
    (tmp_path / scene / "opencv_cameras.json").write_text(json.dumps({"frames": frames}))
  data = SceneData(batch_size=2, num_inputs=3, num_targets=2, size=4, source=str(tmp_path))

  def views(batch):
    return sorted(
      np.concatenate([batch["input_images"], batch["target_images"]], 1)
      .mean((2, 3, 4))
      .round(3)
      .tolist()
    )

  train = data.build("train", seed=0)
  epochs = [views(batch) for batch, _ in zip(train, range(3))]
  assert epochs[0] != epochs[1] != epochs[2] and all(
    len(set(scene)) == 5 for epoch in epochs for scene in epoch
  )
  assert views(next(iter(data.build("train", seed=0)))) == epochs[0]  # the same stream again
  once = [views(next(iter(data.build("validation", seed=0, repeat=False)))) for _ in range(2)]
  assert once[0] == once[1]


def test_centred_poses_do_not_depend_on_the_world():
  rng = np.random.default_rng(0)
  poses = np.tile(np.eye(4), (4, 1, 1))
  poses[:, :3, 3] = rng.normal(size=(4, 3))
  turn = np.eye(4)
  turn[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  turn[:3, :3] *= np.linalg.det(turn[:3, :3])
  turn[:3, 3] = 5.0
  np.testing.assert_allclose(centred(turn[None] @ poses), centred(poses), atol=1e-9)


def test_video_starts_as_attention_and_noise_copies_never_meet():
  cfg = VideoLaCTConfig(num_heads=2, chunk=4, num_repeats=2, num_fast_heads=1, expansion=1.0)
  cos, sin = rotation_3d((1, 2, 2), 12)

  def spread(x):
    return jnp.tile(x, (1, 8, 1, 1))

  x = jax.random.normal(jax.random.key(0), (1, 32, 24))
  module = cfg.build(24, "float32")
  params = nn.unbox(module.init(jax.random.key(1), x, spread(cos), spread(sin)))
  got = module.apply(params, x, spread(cos), spread(sin))
  p = params["params"]  # at the start: no biases, norms of scale 1, silu(0) = 0

  def rms(y):
    return y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True) + cfg.qk_eps)

  def heads(y):
    return y.reshape(1, 32, 2, 12)

  def turn(y):
    return rotate(heads(y), spread(cos), spread(sin), layout="interleaved")

  o = chunk_attention(
    turn(rms(x @ p["w_q"])), turn(rms(x @ p["w_k"])), heads(x @ p["w_v"]), chunk=4, num_repeats=2
  )
  np.testing.assert_allclose(got, o.reshape(1, 32, 24) @ p["w_o"], atol=1e-5)
  opened = module.apply({"params": p | {"b_gate": jnp.ones(1)}}, x, spread(cos), spread(sin))
  assert jnp.abs(opened - got).max() > 1e-3  # the memory is there, behind its gate
  q = jax.random.normal(jax.random.key(2), (1, 32, 2, 6))
  base = chunk_attention(q, q, q, chunk=4, num_repeats=2)
  moved = chunk_attention(q, q, q.at[:, 16].add(1.0), chunk=4, num_repeats=2)  # copy 2 of noise 2
  change = jnp.abs(base - moved)[0].max((1, 2)).reshape(8, 4).max(1) > 0
  assert change.tolist() == [False] * 4 + [True] + [False] * 3
  with pytest.raises(ValueError, match="30 tokens are not"):
    num_chunks(30, 4, 2)


def test_configurations_that_cannot_be_meant_are_refused():
  with pytest.raises(ConfigError, match="head_dim = 5"):
    NVSConfig(d_model=16, head_dim=5)
  with pytest.raises(ConfigError, match="memory = 'fast_weights'"):
    batch = setup()[0]
    model = NVSConfig(d_model=16, num_layers=1, patch=4, head_dim=8, memory="attention").build()
    model.init(jax.random.key(0), views_of(batch, "input"), method="reconstruct")
  with pytest.raises(ConfigError, match="whole patches of 3"):
    batch = setup()[0]
    cfg = NVSConfig(d_model=16, num_layers=1, patch=3, head_dim=8)
    cfg.build().init(jax.random.key(0), *cfg.inputs(batch))
