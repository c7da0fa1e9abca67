"""Files of sources and stores: on a disk, or behind any address that fsspec knows (gs://, s3://, ..).

An address is opened by the package of its scheme (gcsfs for gs://). What such a package raises comes
out as DataError: a bucket that may not be read, an address that does not answer, a package that is
not installed.
"""

import contextlib
import fnmatch
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from jaxlm.data.errors import DataError
from jaxlm.paths import RIGHTS, denied, expand

PACKAGES = {"gs": "gcsfs (pip install 'jaxlm[tpu]')", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
READ_AHEAD = 8 << 20  # bytes of a file that is read from start to end
#: What object stores call a checksum of the content, or else a version of it.
CONTENT = ("md5Hash", "crc32c", "ETag", "etag", "generation", "mtime", "created", "LastModified")


def is_url(path) -> bool:
  return "://" in str(path)


def join(folder: str, *names: str) -> str:
  return "/".join([str(folder).rstrip("/"), *names])


@contextlib.contextmanager
def explained(path) -> Iterator[None]:
  """DataError for what a file system of an address refuses; a disk's errors are left as they are."""
  try:
    yield
  except DataError:
    raise
  except FileNotFoundError as error:
    if not is_url(path):
      raise
    raise DataError(f"{path} does not exist ({_first_line(error)})") from None
  except Exception as error:  # each package has errors of its own
    if not is_url(path) or isinstance(error, (KeyboardInterrupt, MemoryError)):
      raise
    raise DataError(_sentence(path, error)) from None


def _sentence(path, error: Exception) -> str:
  scheme, said = str(path).partition("://")[0], _first_line(error)
  if denied(error) or isinstance(error, PermissionError):
    return f"no right to use {path} ({said}); {RIGHTS}"
  if isinstance(error, ImportError):
    return f"{path}: reading {scheme}:// needs the package {PACKAGES.get(scheme, said)}"
  if isinstance(error, ValueError) and "Protocol not known" in said:
    return (
      f"{path}: no package is known that reads {scheme}://; gs://, s3://, az:// and file:// are"
    )
  return f"{path} cannot be read: {type(error).__name__}: {said}"


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0][:160]


@functools.lru_cache(maxsize=16)
def _system_of(root: str):
  import fsspec

  # What others write is seen: listings are not kept.
  return fsspec.core.url_to_fs(root, use_listings_cache=False)[0]


def _system(path: str):
  """(file system, path in it) of an address."""
  scheme, _, rest = str(path).partition("://")
  system = _system_of(f"{scheme}://{rest.partition('/')[0]}")
  return system, system._strip_protocol(str(path))


def _with_scheme(path: str, like: str) -> str:
  return path if is_url(path) else f"{like.partition('://')[0]}://{path}"


def size(path: str) -> int:
  """Bytes of a file."""
  if not is_url(path):
    return os.path.getsize(path)
  with explained(path):
    system, at = _system(path)
    return int(system.info(at)["size"])


def exists(path: str) -> bool:
  if not is_url(path):
    return os.path.exists(path)
  with explained(path):
    system, at = _system(path)
    return system.exists(at)


def open_file(path: str) -> BinaryIO:
  """A file to read from start to end."""
  if not is_url(path):
    return open(path, "rb")
  with explained(path):
    system, at = _system(path)
    return system.open(at, "rb", cache_type="readahead", block_size=READ_AHEAD)


def read_bytes(path: str) -> bytes:
  """A whole file."""
  if not is_url(path):
    return pathlib.Path(path).read_bytes()
  with explained(path):
    system, at = _system(path)
    return system.cat_file(at)


def read_range(path: str, start: int, stop: int) -> bytes:
  """Bytes start .. stop - 1; fewer where the file ends."""
  if is_url(path):
    with explained(path):
      system, at = _system(path)
      return system.cat_file(at, start=start, end=stop)
  with open(path, "rb") as file:
    file.seek(start)
    return file.read(stop - start)


def write_bytes(path: str, data: bytes) -> None:
  """A whole file or none: an object store does so by itself, on a disk it is renamed."""
  if is_url(path):
    with explained(path):
      system, at = _system(path)
      system.pipe_file(at, data)
    return
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(f"{target.name}.part-{uuid.uuid4().hex}")
  part.write_bytes(data)
  part.replace(target)


def upload(local: pathlib.Path, path: str) -> None:
  """Moves a file of this disk to where it belongs, whole or not at all."""
  if is_url(path):
    with explained(path):
      system, at = _system(path)
      system.put_file(str(local), at)
    local.unlink()
    return
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(f"{target.name}.part-{uuid.uuid4().hex}")
  shutil.move(local, part)  # from another file system it is a copy
  part.replace(target)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
  """The path of a file on this disk, for readers that know only disks."""
  if not is_url(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="jaxlm-") as folder:
    copy = os.path.join(folder, str(path).rpartition("/")[2])
    with explained(path):
      system, at = _system(path)
      system.get_file(at, copy)
    yield copy


def content_digest(path: str) -> str:
  """Names the content of the file behind an address, by the checksum that its store has of it, or by
  the version where it has none. Nothing is read.
  """
  with explained(path):
    system, at = _system(path)
    info = system.info(at)
  known = next((f"{key} {info[key]}" for key in CONTENT if info.get(key)), None)
  if known is None:
    digest = hashlib.sha256()
    with open_file(path) as file:
      while chunk := file.read(READ_AHEAD):
        digest.update(chunk)
    known = digest.hexdigest()
  return hashlib.sha256(f"{info['size']} {known}".encode()).hexdigest()


def matching(pattern: str, inside: str) -> list[str]:
  """Files of an address with wildcards, or `inside` a folder, bytewise sorted; [] where none is."""
  with explained(pattern):
    system, at = _system(pattern)
    if any(c in pattern for c in "*?["):
      found = system.glob(at)
    elif system.isfile(at):
      found = [at]
    else:
      name = inside.rpartition("/")[2]
      found = [p for p in system.find(at) if fnmatch.fnmatch(p.rpartition("/")[2], name)]
    found = [p for p in found if not p.endswith("/") and system.isfile(p)]
  return sorted((_with_scheme(path, pattern) for path in found), key=os.fsencode)


def absolute(folder: str) -> str:
  """A folder's name: an address as it is, a path of this disk absolute."""
  return str(folder).rstrip("/") if is_url(folder) else os.path.abspath(expand(folder))
