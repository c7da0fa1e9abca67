"""Documents from markup: HTML, manual pages, Mallard, message catalogues, Debian's package lists."""

import gettext
import html.parser
import re
import xml.etree.ElementTree as ET

from jaxlm.data.prepare.plain import read

HIDDEN = {"script", "style", "head", "nav"}
BLOCK = {
  "p",
  "div",
  "br",
  "li",
  "tr",
  "td",
  "th",
  "pre",
  "ul",
  "ol",
  "dl",
  "dt",
  "dd",
  "table",
  "section",
  "article",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "blockquote",
  "title",
  "body",
  "hr",
}


class _Text(html.parser.HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.out, self.hidden = [], 0

  def handle_starttag(self, tag, attrs):
    self.hidden += tag in HIDDEN
    if tag in BLOCK:
      self.out.append("\n")

  def handle_endtag(self, tag):
    self.hidden = max(self.hidden - (tag in HIDDEN), 0)
    if tag in BLOCK:
      self.out.append("\n")

  def handle_data(self, data):
    if not self.hidden:
      self.out.append(data)


def html_text(source: str) -> str:
  """Text without tags, scripts and navigation; block elements end a line, blanks collapse, at most
  one empty line.
  """
  parser = _Text()
  parser.feed(source)
  parser.close()
  return tidy("".join(parser.out))


def tidy(text: str) -> str:
  lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.split("\n"))
  return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def page(path, name):
  """An HTML page."""
  yield name, html_text(read(path))


def translated_page(depth: int):
  """An HTML page whose key is its path without the language, which is component `depth`."""

  def extract(path, name):
    parts = name.split("/")
    text = html_text(read(path))
    text = "".join(
      line + "\n"
      for line in text.split("\n")
      if not line.startswith("Help content debug info") and not line.endswith(".xhp")
    )
    yield "/".join(parts[:depth] + parts[depth + 1 :]), text

  return extract


def declaration(path, name):
  """A language of the Universal Declaration: evaluation for every language, so one key for all."""
  yield "udhr", html_text(read(path))


def manual_page(path, name):
  """roff: requests and font escapes removed.

  The key is the page's name and section, the same in every language.
  """
  out = []
  for line in read(path).split("\n"):
    if re.match(r"[.'](SH|SS|B|I|BR|IR|RB|RI|BI|IB|TP|IP)\b", line):
      line = re.sub(r"^[.']\w+ ?", "", line).replace('"', "")
    elif line[:1] in (".", "'"):
      line = "" if re.match(r"[.'](PP|P|LP|sp)\b", line) else None
    if line is not None:
      line = re.sub(r"\\f\[?[A-Z0-9]+\]?|\\s[+-]?\d|\\&|\\/|\\,|\\\"\s.*", "", line)
      out.append(
        line.replace("\\-", "-").replace("\\e", "\\").replace("\\(em", "—").replace("\\~", " ")
      )
  yield path.name.removesuffix(".gz"), tidy("\n".join(out))


def mallard(path, name):
  """GNOME help. The key is the path without the language folder."""
  blocks = []
  for node in ET.fromstring(read(path)).iter():
    tag = node.tag.rpartition("}")[2]
    if tag in ("title", "p", "desc", "code"):
      blocks.append(re.sub(r"\s+", " ", "".join(node.itertext())).strip())
  parts = name.split("/")
  language = next(i for i, part in enumerate(parts) if part == "help") + 1
  yield "/".join(parts[:language] + parts[language + 1 :]), "\n\n".join(filter(None, blocks)) + "\n"


def catalogue(path, name):
  """The distinct translations of a message catalogue; the key is the catalogue's name."""
  with path.open("rb") as file:
    messages = gettext.GNUTranslations(file)._catalog
  strings = sorted(
    {s for source, s in messages.items() if source and isinstance(s, str) and s and s != source}
  )
  yield path.name, "\n".join(strings) + "\n"


def package_descriptions(path, name):
  """Stanzas of a Translation list. The key is Description-md5, the same in every language."""
  for _, key, text in _stanzas(path):
    yield key, text


def one_per_source(path, name):
  """The same, of one package per source: a library, its -dev and its -doc describe themselves in
  the same words.
  """
  source, seen = {}, set()
  for packages in sorted(path.parent.glob("Packages*.list")):
    for stanza in read(packages).split("\n\n"):
      fields = dict(
        line.split(": ", 1) for line in stanza.split("\n") if re.match(r"(Package|Source): ", line)
      )
      if "Source" in fields:
        source[fields["Package"]] = fields["Source"].split()[0]
  for package, key, text in _stanzas(path):
    if source.get(package, package) not in seen:
      seen.add(source.get(package, package))
      yield key, text


def _stanzas(path):
  """(package, Description-md5, text)"""
  package, key, text = None, None, []
  for line in [*read(path).split("\n"), ""]:
    if line.startswith("Package:"):
      package = line.partition(":")[2].strip()
    elif line.startswith("Description-md5:"):
      key = line.partition(":")[2].strip()
    elif re.match(r"Description-[a-zA-Z_@]+:", line):
      text = [line.partition(":")[2].strip()]
    elif line.startswith(" ") and text:
      text.append("" if line.strip() == "." else line[1:])
    elif not line:
      if key and text:
        yield package, key, "\n".join(text) + "\n"
      package, key, text = None, None, []
