"""Packages by name from pip, npm and apt, unpacked without being installed.

Nothing is fetched by address: the package managers know where their packages are and check their
signatures.
"""

import errno
import glob
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
import zlib

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.made_once import locked


def fetch(package: str, folder: pathlib.Path) -> tuple[pathlib.Path, dict]:
  """(root of the unpacked files, {'package', 'file', 'sha256'}); downloads unless `folder` has it
  already.
  """
  kind, _, name = package.partition(":")
  if kind == "folder":
    return pathlib.Path(name), {"package": package}
  if kind == "python":
    return pathlib.Path(sysconfig.get_path("stdlib")), {
      "package": f"python {sys.version.split()[0]} standard library"
    }
  target = folder / package.replace(":", "-").replace("/", "+")
  if not (target / "package.json").is_file():
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{target.name}.lock"):
      if not (target / "package.json").is_file():  # or another process was first
        _download(package, target)
  return target / "files", json.loads((target / "package.json").read_text())


def _download(package: str, target: pathlib.Path) -> None:
  """Downloads and unpacks under a name of its own, then renames to `target`."""
  kind, _, name = package.partition(":")
  prefix = f".part-{target.name}-"
  with locked(target.parent / f".{target.name}.lock", wait=False) as ours:
    for left in (
      target.parent.glob(f"{glob.escape(prefix)}*") if ours else ()
    ):  # of a process that was killed
      shutil.rmtree(left, ignore_errors=True)
  with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as part:
    part = pathlib.Path(part)
    (part / "archive").mkdir()
    (part / "files").mkdir()
    archives = DOWNLOAD[kind](name, part / "archive")
    for archive in archives:
      unpack(archive, part / "files")
    described = {
      "package": package,
      "file": ", ".join(a.name for a in archives),
      "sha256": hashlib.sha256(b"".join(sorted(_sha256(a) for a in archives))).hexdigest(),
      "bytes": sum(a.stat().st_size for a in archives),
    }
    shutil.rmtree(part / "archive")
    (part / "package.json").write_text(json_text.dumps(described))
    shutil.rmtree(target, ignore_errors=True)
    os.rename(part, target)
    part.mkdir()  # what the context manager expects to remove


def _pip(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  return _run(
    [
      sys.executable,
      "-m",
      "pip",
      "download",
      "--quiet",
      "--no-deps",
      "--disable-pip-version-check",
      "-d",
      str(folder),
      name,
    ],
    folder,
    name,
  )


def _npm(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  return _run(["npm", "pack", "--silent", name], folder, name)


def _apt(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  return _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", name], folder, name)


def _apt_lists(language: str, folder: pathlib.Path) -> list[pathlib.Path]:
  """Package lists and their descriptions in one language, in a private folder: needs no root and
  changes nothing.
  """
  lists = folder / "lists"
  (lists / "partial").mkdir(parents=True)
  (folder / "cache" / "archives" / "partial").mkdir(parents=True)
  options = [
    "-o",
    f"Dir::State::lists={lists}",
    "-o",
    f"Dir::Cache={folder / 'cache'}",
    "-o",
    "APT::Sandbox::User=",
    "-o",
    "Acquire::Languages=",
    "-o",
    f"Acquire::Languages::={language}",
    "-o",
    "APT::Update::Post-Invoke=",
    "-o",
    "APT::Update::Post-Invoke-Success=",
  ]
  _run(["apt-get", "-qq", *options, "update"], folder, f"lists ({language})", output=False)
  out = []
  for path in sorted(lists.iterdir()):
    if path.is_file() and ("Translation-" in path.name or "_Packages" in path.name):
      plain = folder / (path.name.rpartition("_")[2].partition(".")[0] + f".{len(out)}.list")
      with plain.open("wb") as file:
        subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], stdout=file, check=True)
      out.append(plain)
  return out


DOWNLOAD = {"pip": _pip, "npm": _npm, "apt": _apt, "apt-lists": _apt_lists}


def _run(
  command: list[str], folder: pathlib.Path, name: str, output: bool = True
) -> list[pathlib.Path]:
  """Runs a package manager in `folder`; the archives that it left there."""
  try:
    # A session of its own: apt asks the terminal, which stops it, and us, when we run in the
    # background.
    done = subprocess.run(
      command,
      cwd=folder,
      capture_output=True,
      text=True,
      stdin=subprocess.DEVNULL,
      start_new_session=True,
    )
  except FileNotFoundError:
    raise DataError(
      f"package {name!r} needs {command[0]!r}, which is not on this machine; install it, or prepare the "
      f"corpus on another machine and copy the folder"
    ) from None
  archives = sorted(p for p in folder.iterdir() if p.is_file())
  if done.returncode or (output and not archives):
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    hint = "; run `apt-get update` first" if command[0] == "apt-get" else ""
    raise DataError(f"`{' '.join(command)}` failed{hint}: {lines[-1][:300]}")
  return archives


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
  """Wheel, sdist, npm tarball or Debian package into `folder`, without its links to what lies
  elsewhere.
  """
  try:
    _unpack(archive, folder)
  except (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    RuntimeError,
    NotImplementedError,
  ) as error:
    raise _damaged(archive, error) from None
  except OSError as error:
    if error.filename is not None or error.errno in (
      errno.ENOSPC,
      errno.EDQUOT,
      errno.EFBIG,
    ):  # a file of ours cannot be written
      raise
    raise _damaged(archive, error) from None  # a length or a place that an archive cannot have
  for path in folder.rglob("*"):
    if path.is_symlink() and not inside(path, folder):
      path.unlink()


def _damaged(archive: pathlib.Path, error: Exception) -> DataError:
  text = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
  return DataError(f"{archive.name} cannot be unpacked: {text[:200]}; download it again")


def inside(path: pathlib.Path, root: pathlib.Path) -> bool:
  """Whether the file lies in the folder `root` once links are followed."""
  try:
    return path.resolve().is_relative_to(root.resolve())
  except (OSError, RuntimeError):  # a link that leads back to itself
    return False


def _unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
  if archive.name.endswith((".whl", ".zip")):
    with zipfile.ZipFile(archive) as file:
      file.extractall(folder)
  elif archive.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
    with tarfile.open(archive) as file:
      file.extractall(folder, filter="data")
  elif archive.name.endswith(".deb"):
    done = subprocess.run(
      ["dpkg-deb", "-x", str(archive), str(folder)], capture_output=True, text=True
    )
    if done.returncode:
      raise DataError(f"{archive.name} cannot be unpacked: {done.stderr.strip()[:200]}")
  else:
    shutil.copy(archive, folder)


def _sha256(path: pathlib.Path) -> bytes:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").digest()
