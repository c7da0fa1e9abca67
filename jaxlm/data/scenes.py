"""Posed images for view synthesis: ray-cast toy scenes, and folders in the format of the released
code.

Axes: B batch, S views, Y rows, X columns.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import ClassVar

import grain
import numpy as np

from jaxlm.config import checked
from jaxlm.data.base import DataConfig
from jaxlm.data.digests import file_digest
from jaxlm.data.errors import DataError
from jaxlm.data.pipeline import batches
from jaxlm.data.splits import SPLIT_SEEDS, check_split
from jaxlm.paths import expand
from jaxlm.ranges import Count, Positive

CAMERA_FILE = "opencv_cameras.json"
LIGHT = np.array([0.4, 0.3, 0.87])


@dataclasses.dataclass(frozen=True)
@checked
class SceneData(DataConfig):
  """num_inputs views teach, num_targets views are asked for; images are size x size (or height x
  width) pixels.

  source: 'toy' casts rays at coloured spheres and boxes; otherwise a folder, or a .txt or .json
  list of folders, each
    with `opencv_cameras.json` (frames: file_path, w2c, fx, fy, cx, cy). {split} in it is replaced.
  centre_poses: real scenes: align to the mean camera and divide by the largest coordinate of a
  camera.
  num_shapes, shape_scale: of a toy scene; a factor on radii and sides, so that small pictures still
  show something.
  rows: of one pass over toy scenes. Inputs and targets of a folder are drawn without replacement:
  anew in every epoch of
    training, from (seed, index) in a single pass, so that validations are comparable.
  """

  batch_form: ClassVar[str] = "views"

  batch_size: Count
  num_inputs: Count = 4
  num_targets: Count = 2
  size: Count = 32
  width: Count | None = None
  source: str = "toy"
  num_shapes: Count = 4
  shape_scale: Positive = 1.0
  centre_poses: bool = True
  rows: Count = 64

  @property
  def seq_len(self) -> int:
    """Pixels of a row: what throughput is counted in."""
    return (self.num_inputs + self.num_targets) * self.size * (self.width or self.size)

  @property
  def vocab_size(self) -> int:
    return 256

  @property
  def batch_fields(self) -> dict:
    """{name: (shape, dtype)} of a batch; no scene is read."""
    S = self.num_inputs + self.num_targets
    blank = as_row(
      self,
      np.zeros((S, 3, self.size, self.width or self.size)),
      np.zeros((S, 4)),
      np.zeros((S, 4, 4)),
    )
    return {name: ((self.batch_size, *x.shape), x.dtype) for name, x in blank.items()}

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    """Batches of {input,target}_{images,intrinsics,poses}; images (B, S, 3, Y, X) float32 in [0,
    1].
    """
    check_split(split)
    toy = self.source == "toy"
    rows = ToyScenes(self, split, seed) if toy else PosedFolders(self, split, seed, lazy=repeat)
    return batches(
      rows,
      batch_size=self.batch_size,
      seed=seed,
      shuffle=repeat and not toy,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"scenes {self}{rows.content}",
      transform=rows.draw if repeat and not toy else None,
    )


def as_row(cfg: SceneData, images, intrinsics, poses) -> dict[str, np.ndarray]:
  """The first num_inputs views are inputs, the rest targets."""
  n, row = cfg.num_inputs, {}
  for role, part in (("input", slice(0, n)), ("target", slice(n, n + cfg.num_targets))):
    row |= {
      f"{role}_images": np.asarray(images[part], np.float32),
      f"{role}_intrinsics": np.asarray(intrinsics[part], np.float32),
      f"{role}_poses": np.asarray(poses[part], np.float32),
    }
  row["loss_weights"] = np.ones(cfg.num_targets, np.float32)
  row["target_bytes"] = np.zeros(cfg.num_targets, np.int32)  # for rows that fill up the last batch
  return row


class ToyScenes:
  """Row i: shapes and cameras drawn from (seed, split, i)."""

  content = ""

  def __init__(self, cfg: SceneData, split: str, seed: int):
    self.cfg, self.split, self.seed = cfg, split, seed

  def __len__(self) -> int:
    return 1_000_000 if self.split == "train" else self.cfg.rows

  def __getitem__(self, index: int):
    cfg = self.cfg
    rng = np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index)])
    shapes = random_shapes(rng, cfg.num_shapes, cfg.shape_scale)
    views = cfg.num_inputs + cfg.num_targets
    height, width = cfg.size, cfg.width or cfg.size
    poses = np.stack([look_at_origin(rng) for _ in range(views)])
    focal = 1.2 * height
    intrinsics = np.tile([focal, focal, width / 2, height / 2], (views, 1))
    images = np.stack([cast(shapes, k, pose, height, width) for k, pose in zip(intrinsics, poses)])
    return as_row(cfg, images, intrinsics, poses)


def random_shapes(rng, count: int, scale: float = 1.0) -> list[dict]:
  """Spheres (radius) and axis-aligned boxes (half sides) inside the unit ball (at scale 1), in
  saturated colours.
  """
  shapes = []
  for _ in range(count):
    hue = rng.uniform(0, 1, 3)
    sphere = rng.uniform() < 0.5
    size = (
      dict(radius=scale * rng.uniform(0.15, 0.35))
      if sphere
      else dict(half=scale * rng.uniform(0.12, 0.3, 3))
    )
    shapes.append(
      dict(centre=rng.uniform(-0.5, 0.5, 3), colour=0.15 + 0.85 * (hue / hue.max())) | size
    )
  return shapes


def look_at_origin(rng) -> np.ndarray:
  """Camera-to-world (4, 4) of a camera 2.5 from the origin, looking at it; x right, y down, z
  forward.
  """
  up = np.array([0.0, 0.0, 1.0])
  angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.8)
  place = 2.5 * np.array(
    [np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height]
  )
  forward = -place / np.linalg.norm(place)
  right = np.cross(forward, up)
  right /= np.linalg.norm(right)
  pose = np.eye(4)
  pose[:3] = np.stack([right, np.cross(forward, right), forward, place], 1)
  return pose


def cast(shapes, intrinsics, pose, height: int, width: int) -> np.ndarray:
  """(3, Y, X) in [0, 1]: nearest hit, Lambert shading, on a white background.

  Rays as the model has them (pixel centres).
  """
  fx, fy, cx, cy = intrinsics
  y, x = np.mgrid[:height, :width] + 0.5
  ray = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) @ pose[:3, :3].T
  ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
  origin, nearest = pose[:3, 3], np.full((height, width), np.inf)
  image = np.ones((height, width, 3))
  for shape in shapes:
    distance, normal = (_hit_sphere if "radius" in shape else _hit_box)(shape, origin, ray)
    closer = distance < nearest
    light = 0.45 + 0.55 * np.clip(normal @ LIGHT, 0, 1)
    image[closer] = (shape["colour"] * light[..., None])[closer]
    nearest = np.minimum(nearest, distance)
  return image.transpose(2, 0, 1).astype(np.float32)


def _hit_sphere(shape, origin, ray):
  to = origin - shape["centre"]
  b = ray @ to
  under = b * b - (to @ to - shape["radius"] ** 2)
  distance = np.where(under > 0, -b - np.sqrt(np.maximum(under, 0)), np.inf)
  distance = np.where(distance > 0, distance, np.inf)
  point = origin + ray * np.where(np.isfinite(distance), distance, 0)[..., None]
  return distance, (point - shape["centre"]) / shape["radius"]


def _hit_box(shape, origin, ray):
  with np.errstate(divide="ignore", invalid="ignore"):
    near = (shape["centre"] - np.sign(ray) * shape["half"] - origin) / ray
    far = (shape["centre"] + np.sign(ray) * shape["half"] - origin) / ray
  near, far = np.nan_to_num(near, nan=-np.inf), np.nan_to_num(far, nan=np.inf)
  enter, leave = near.max(-1), far.min(-1)
  distance = np.where((enter < leave) & (enter > 0), enter, np.inf)
  axis = near.argmax(-1)
  normal = -np.sign(np.take_along_axis(ray, axis[..., None], -1)) * np.eye(3)[axis]
  return distance, normal


class PosedFolders:
  """One row per scene folder. Its views are drawn from (seed, index), or, lazy, later: a row is
  {"scene": index} for `draw`, whose generator knows the place in the stream."""

  def __init__(self, cfg: SceneData, split: str, seed: int, *, lazy: bool = False):
    self.cfg, self.seed, self.lazy = cfg, seed, lazy
    self.folders = find_folders(cfg.source.replace("{split}", split))

  @property
  def content(self) -> str:
    """Of the cameras of all scenes in order. Pictures do not enter: they are large, and which are
    read is drawn.
    """
    cameras = " ".join(file_digest(folder / CAMERA_FILE) for folder in self.folders)
    return " " + hashlib.sha256(cameras.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    return len(self.folders)

  def __getitem__(self, index: int):
    row = {"scene": np.int64(index)}
    return row if self.lazy else self.draw(row, np.random.default_rng([self.seed, int(index)]))

  def draw(self, row: dict, rng: np.random.Generator) -> dict:
    cfg, folder = self.cfg, self.folders[int(row["scene"])]
    frames = read_frames(folder)
    wanted = cfg.num_inputs + cfg.num_targets
    if len(frames) < wanted:
      raise DataError(
        f"{folder} has {len(frames)} views, {wanted} are wanted; lower data.num_inputs or num_targets"
      )
    chosen = rng.permutation(len(frames))[:wanted]
    height, width = cfg.size, cfg.width or cfg.size
    read = [
      read_image(folder / frames[i]["file_path"], _intrinsics(frames[i]), height, width)
      for i in chosen
    ]
    poses = np.stack([np.linalg.inv(np.asarray(frames[i]["w2c"], np.float64)) for i in chosen])
    return as_row(
      cfg,
      np.stack([image for image, _ in read]),
      np.stack([k for _, k in read]),
      centred(poses) if cfg.centre_poses else poses,
    )


def find_folders(source: str) -> list[pathlib.Path]:
  """Scene folders of a folder (itself or its children) or of a list of paths, relative to the list."""
  path = pathlib.Path(expand(source))
  if path.suffix in (".txt", ".json") and path.is_file():
    text = path.read_text()
    names = json.loads(text) if path.suffix == ".json" else text.split("\n")
    found = [path.parent / name for name in names if name.strip()]
    found = [f.parent if f.name == CAMERA_FILE else f for f in found]
  elif path.is_dir():
    found = sorted(f.parent for f in path.rglob(CAMERA_FILE))
  else:
    raise DataError(
      f"data.source = {source!r}: no such folder or list; use 'toy' for generated scenes"
    )
  missing = [f for f in found if not (f / CAMERA_FILE).is_file()]
  if missing or not found:
    raise DataError(
      f"data.source = {source!r}: no {CAMERA_FILE} in {missing[0] if missing else source}"
    )
  return found


def read_frames(folder: pathlib.Path) -> list[dict]:
  frames = json.loads((folder / CAMERA_FILE).read_text())["frames"]
  for field in ("file_path", "w2c", "fx", "fy", "cx", "cy"):
    if any(field not in frame for frame in frames):
      raise DataError(f"{folder / CAMERA_FILE}: a frame has no {field!r}")
  return frames


def _intrinsics(frame) -> np.ndarray:
  return np.array([frame[k] for k in ("fx", "fy", "cx", "cy")], np.float64)


def read_image(path, intrinsics, height: int, width: int):
  """(image (3, Y, X) in [0, 1], intrinsics): resized to cover, centre-cropped, transparent pixels
  white.
  """
  from PIL import Image

  try:
    with Image.open(path) as file:
      image = file.convert("RGBA")
  except OSError as error:
    raise DataError(f"{path}: not a readable image ({error})") from None
  scale = max(height / image.height, width / image.width)
  size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
  ratio = size[0] / image.width, size[1] / image.height
  pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32) / 255
  left, top = (size[0] - width) // 2, (size[1] - height) // 2
  pixels = pixels[top : top + height, left : left + width]
  rgb = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
  fx, fy, cx, cy = intrinsics
  return rgb.transpose(2, 0, 1), np.array(
    [fx * ratio[0], fy * ratio[1], cx * ratio[0] - left, cy * ratio[1] - top]
  )


def centred(poses: np.ndarray) -> np.ndarray:
  """Poses relative to the mean camera (mean place, mean forward, mean down), the farthest
  coordinate at 1.
  """
  place, forward, down = (poses[:, :3, i].mean(0) for i in (3, 2, 1))
  z = forward / np.linalg.norm(forward)
  x = np.cross(down, z)
  x /= np.linalg.norm(x)
  mean = np.eye(4)
  mean[:3] = np.stack([x, np.cross(z, x), z, place], 1)
  poses = np.linalg.inv(mean)[None] @ poses
  largest = np.abs(poses[:, :3, 3]).max()
  poses[:, :3, 3] /= largest if largest > 0 else 1.0
  return poses
