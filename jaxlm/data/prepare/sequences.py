"""DNA and protein: FASTA records."""

import gzip


def records(path):
  """(header, letters) of a FASTA file, upper case."""
  raw = path.read_bytes()
  text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("ascii")
  for record in text.split(">")[1:]:
    header, _, letters = record.partition("\n")
    yield header, "".join(letters.split()).upper()


def dna(path, name):
  """Records over ACGTN; every other letter becomes N.

  The key is species and record, from the path and the header.
  """
  for header, letters in records(path):
    plain = letters.translate({ord(c): "N" for c in set(letters) - set("ACGTN")})
    yield f"{name} {header}", plain


def protein(path, name):
  for header, letters in records(path):
    yield header.split()[0], letters


def dna_side(key: str) -> str:
  """By species, never at random: strains of one share most of their letters.

  H. pylori is the test genus; the second chromosome of V. cholerae validates; everything else
  trains.
  """
  low = key.lower()
  if "pylori" in low:
    return "test"
  if "cholerae" in low and ("chromosome ii" in low or "chromosome 2" in low):
    return "validation"
  return "train"
