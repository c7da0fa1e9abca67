"""Paths as people type them: `~` is their home, `~name` another user's; addresses of object stores
stay as they are.
"""

import os
import re

from jaxlm.config import ConfigError

#: What object stores and their clients say when an account may not do something.
_DENIED = re.compile(
  r"Forbidden|PERMISSION_DENIED|does not have storage\.|AccessDenied|Access Denied|Anonymous caller|Unauthorized"
  r"|default credentials|Invalid Credentials|(?:HTTP(?:/[\d.]+)?|code|status|error)[ :=]*40[13]\b|\b40[13] caller",
  re.IGNORECASE,
)
#: The remedy.
RIGHTS = (
  "give this account the right to list, read and write the bucket's objects (of Google: roles/storage.objectUser), "
  "or log in (gcloud auth application-default login)"
)


def denied(error: BaseException) -> bool:
  """Whether an object store has refused for want of rights. A disk's errors have a number, and are not meant."""
  if getattr(error, "code", getattr(error, "status", None)) in (401, 403):
    return True
  if isinstance(error, PermissionError):
    return error.errno is None
  return bool(_DENIED.search(str(error))) and getattr(error, "errno", None) is None


def expand(path: str | os.PathLike) -> str:
  """The path with a leading `~` or `~name` replaced. ConfigError where that home is not known."""
  text = os.fspath(path)
  if not text.startswith("~") or "://" in text:
    return text
  name, slash, rest = text[1:].partition("/")
  if name:
    home = os.path.expanduser(f"~{name}")
    if home != f"~{name}":
      return home + slash + rest
    if os.path.lexists(text):
      return text
    raise ConfigError(
      f"{text}: there is no user {name!r} whose home that would be; for a file of this name write ./{text}"
    )
  return (os.environ.get("HOME") or _home_on_record(text)).rstrip("/") + slash + rest


def _home_on_record(text: str) -> str:
  """The home folder that the system has for this user; asked where HOME is not set."""
  try:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir
  except (ImportError, KeyError):
    raise ConfigError(
      f"{text}: no home folder is known, because HOME is not set; set it, or give the whole path"
    ) from None
