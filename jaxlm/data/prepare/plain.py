"""Documents from plain text: files, archives, dictionaries, lines, JSON, R vectors."""

import gzip
import json
import re
import struct
import tarfile
import zlib

BLOCK = 32_000  # characters of a document where the text itself has no parts


def decode(raw: bytes) -> str:
  """UTF-8, else Latin-1; CRLF becomes LF. Not normalised otherwise: byte models must see real
  bytes.
  """
  try:
    text = raw.decode("utf-8")
  except UnicodeDecodeError:
    text = raw.decode("latin-1")
  return text.replace("\r\n", "\n")


def read(path) -> str:
  """A file, decompressed if its name says so (dictd's .dz is gzip)."""
  raw = path.read_bytes()
  return decode(gzip.decompress(raw) if path.suffix in (".gz", ".dz") else raw)


def blocks(key: str, text: str, size: int = BLOCK):
  """Documents of about `size` characters, cut at blank lines, that concatenate to the text."""
  start, number = 0, 0
  while start < len(text):
    cut = text.find("\n\n", start + size)
    end = cut + 2 if cut >= 0 else len(text)
    yield f"{key}/{number:05d}", text[start:end]
    start, number = end, number + 1


def whole(path, name):
  """The file is the document."""
  yield name, read(path)


def in_blocks(path, name):
  """One long file, cut at blank lines."""
  yield from blocks(name, read(path))


def chapters(pattern: str):
  """A book cut where lines match."""

  def extract(path, name):
    yield from cut_at(pattern, name, read(path))

  return extract


def cut_at(pattern: str, key: str, text: str):
  starts = [m.start() for m in re.finditer(pattern, text, re.MULTILINE)]
  bounds = [0, *starts[1:], len(text)]
  for number, (a, b) in enumerate(zip(bounds, bounds[1:])):
    yield f"{key}/{number:03d}", text[a:b]


def fortunes(path, name):
  """Entries between lines that are only %."""
  for number, text in enumerate(re.split(r"^%\n", read(path), flags=re.MULTILINE)):
    yield f"{name}/{number}", text


def json_lines(field: str, group: str):
  """Lines' fields joined by group: the verses of a book are one document."""

  def extract(path, name):
    grouped = {}
    for line in read(path).splitlines():
      if line.strip():
        record = json.loads(line)
        grouped.setdefault(str(record[group]), []).append(record[field])
    for key, texts in grouped.items():
      yield f"{name}/{key}", "\n".join(texts) + "\n"

  return extract


def lines(key):
  """A document per line; key: line -> split key."""

  def extract(path, name):
    for line in read(path).splitlines():
      if line.strip():
        yield key(line), line

  return extract


def wordnet(path, name):
  """Glosses: what stands after '|' in the synset lines."""
  for line in read(path).splitlines():
    if not line.startswith("  ") and "|" in line:
      yield f"{name}/{line[:8]}", line.partition("|")[2].strip()


def definitions(path, name):
  """'word: gloss' of the synset lines, one per word that is a single one in lower case."""
  for line in read(path).splitlines():
    if not line.startswith("  ") and "|" in line:
      fields, gloss = line.partition("|")[0].split(), line.partition("|")[2].strip()
      for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
        if word.isalpha() and word.islower():
          yield word, f"{word}: {gloss}"


def rfc(path, name):
  """A Request for Comments without its page breaks."""
  text = read(path).replace("\f", "")
  text = re.sub(r"^.*\[Page \d+\]\s*$\n?|^RFC \d+ {3,}.*\d{4}$\n?", "", text, flags=re.MULTILINE)
  yield name, re.sub(r"\n{4,}", "\n\n\n", text)


def source_archive(suffixes: tuple[str, ...], skip: tuple[str, ...] = ()):
  """Files of a compressed tar, streamed. Key: two path components, so near copies of one driver
  stay together.
  """

  def extract(path, name):
    with tarfile.open(path, "r|*") as archive:
      for member in archive:
        inside = member.name.partition("/")[2]
        if member.isfile() and inside.endswith(suffixes) and not inside.startswith(skip):
          yield two_components(inside), decode(archive.extractfile(member).read())

  return extract


def two_components(name: str) -> str:
  return "/".join(name.split("/")[:2])


def source_file(path, name):
  yield two_components(name), read(path)


def r_books(path, name):
  """Novels of an R lazy-load file: blocks [4-byte plain length, zlib(serialised character vector)],
  cut at chapters.
  """
  raw, number = path.read_bytes(), 0
  while raw:
    stream = zlib.decompressobj()
    text = "\n".join(r_strings(stream.decompress(raw[4:]))) + "\n"
    yield from cut_at(r"^(CHAPTER|Chapter) [\dIVXLC]+\.?$", f"{name}/{number}", text)
    raw, number = stream.unused_data, number + 1


def r_strings(raw: bytes) -> list[str]:
  """The strings of an R serialisation (format X, versions 2 and 3) that holds one character vector."""
  if raw[:2] != b"X\n":
    raise ValueError("not R's binary serialisation")
  [version] = struct.unpack_from(">i", raw, 2)
  at = 14
  if version == 3:
    at += 4 + struct.unpack_from(">i", raw, at)[0]
  flags, count = struct.unpack_from(">ii", raw, at)
  if flags & 0xFF != 16:
    raise ValueError(f"R object of type {flags & 0xFF}, wanted a character vector (16)")
  at, out = at + 8, []
  for _ in range(count):
    _, size = struct.unpack_from(">ii", raw, at)
    out.append(decode(raw[at + 8 : at + 8 + max(size, 0)]))
    at += 8 + max(size, 0)
  return out


def verses(field: str):
  """quran-json: verse by verse; the key is the verse number, the same in every language."""

  def extract(path, name):
    for chapter in json.loads(read(path)):
      for verse in chapter["verses"]:
        yield f"{chapter['id']}:{verse['id']}", verse[field]

  return extract


def poems(path, name):
  """chinese-poetry: title, author, lines."""
  for poem in json.loads(read(path)):
    text = "\n".join([poem.get("title", ""), poem.get("author", ""), *poem["paragraphs"]])
    yield text, text + "\n"
