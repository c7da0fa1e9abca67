"""Links of a page in the repository become links of the site.

A line `<!-- page: CHANGELOG.md -->` stands for the text of that file of the repository; under a heading
of its own the page's headings go down by one level. A link to a
file that has a page on the site leads to that page; a link to another file of the repository is a
download. A link to nothing is a warning, and so an error of the build. In a table of contents, `pods?`
is the page pods.md where it exists.
"""

import os
import pathlib
import re

from sphinx.util import logging

DOCS = pathlib.Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
WHOLE = re.compile(r"^<!-- page: (\S+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
OPTIONAL = re.compile(r"^([\w/]+)\?\n", re.MULTILINE)
EXTERNAL = re.compile(r"[a-z]+:|#|mailto:")

log = logging.getLogger(__name__)


def stubs() -> dict[pathlib.Path, pathlib.Path]:
  """{file of the repository: page of the site that stands for it}."""
  out = {}
  for page in sorted(DOCS.rglob("*.md")):
    if "_build" not in page.parts:
      for name in WHOLE.findall(page.read_text()):
        out[(ROOT / name).resolve()] = page
  return out


def targets(text: str, folder: pathlib.Path):
  """(link, file) of every link to a file in a page that lies in `folder`; code is left out."""
  for part in CODE.split(text)[::2]:
    for _, label, link in LINK.findall(part):
      if not EXTERNAL.match(link):
        yield link, (folder / link.partition("#")[0]).resolve()
      yield from targets(label, folder) if "](" in label else ()


def moved(text: str, folder: pathlib.Path, page: pathlib.Path, known) -> str:
  """The text with the links of a page in `folder` as links of the site's `page`."""

  def link(match) -> str:
    image, label, target = match.groups()
    if not image and "](" in label:
      label = LINK.sub(link, label)
    if EXTERNAL.match(target):
      return f"{image}[{label}]({target})"
    name, _, anchor = target.partition("#")
    file = (folder / name).resolve()
    if not file.exists():
      log.warning("%s: a link to %s, which does not exist", page.relative_to(ROOT), target)
      return label
    if file.is_dir():
      return label if label.startswith("`") else f"`{file.relative_to(ROOT)}`"
    file = known.get(file, file)
    way = pathlib.PurePath(os.path.relpath(file, page.parent)).as_posix()
    if image or (DOCS in file.parents and file.suffix == ".md"):
      return f"{image}[{label}]({way}{'#' + anchor if anchor else ''})"
    return f"{{download}}`{label.replace('`', '')} <{way}>`"

  parts = CODE.split(text)
  parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
  return "".join(parts)


def lower(text: str) -> str:
  """Headings one level down; comments in code are no headings."""
  parts = CODE.split(text)
  parts[::2] = [re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts[::2]]
  return "".join(parts)


def on_read(app, name: str, source: list[str]) -> None:
  page = pathlib.Path(app.env.doc2path(name))
  if page.suffix != ".md":
    return
  known = app.env.jaxlm_stubs = getattr(app.env, "jaxlm_stubs", None) or stubs()
  text = OPTIONAL.sub(
    lambda m: f"{m[1]}\n" if (page.parent / f"{m[1]}.md").exists() else "", source[0]
  )
  text = moved(text, page.parent, page, known)

  def whole(match) -> str:
    file = ROOT / match[1]
    app.env.note_dependency(str(file))
    there = moved(file.read_text(), file.parent, page, known)
    return lower(there) if text.startswith("# ") else there

  source[0] = WHOLE.sub(whole, text)


def setup(app):
  app.connect("source-read", on_read)
  return {"version": "1", "parallel_read_safe": False}
