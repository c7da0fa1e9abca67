"""Which tokenizers give a text the same tokens in pieces as whole, when it is cut behind a line's
end between two letters.

Anything else adds a blank to every piece, has rules that reach over the cut, or may have them: such
texts are encoded whole.
"""

#: Patterns that split words in published files; in each a line's end between letters is a word of
#: its own.
GPT2 = {
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
PATTERNS = GPT2 | {
  # Llama 3 and cl100k, Qwen 2 and 3
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def may_be_cut(described: dict) -> bool:
  """described: the contents of a tokenizer.json."""
  normalizer = described.get("normalizer")
  steps = steps_of(described.get("pre_tokenizer"), "pretokenizers")
  return (
    described["model"].get("type") == "BPE"
    and not described["model"].get("dropout")
    and (normalizer is None or normalizer["type"] == "NFC")
    and _splits_words(steps)
    and not any(_reaches_over(token) for token in described["added_tokens"] if not token["special"])
  )


def spells_exactly(described: dict, letters: set[str]) -> bool:
  """Whether the tokens of every text spell it byte by byte: byte-level BPE that knows all bytes and
  changes no text.

  letters: those that stand for the 256 bytes.
  """
  steps, model = steps_of(described.get("pre_tokenizer"), "pretokenizers"), described["model"]
  return (
    model.get("type") == "BPE"
    and described.get("normalizer") is None
    and not model.get("end_of_word_suffix")
    and not model.get("continuing_subword_prefix")
    and any(step["type"] == "ByteLevel" for step in steps)
    and not any(map(_adds_blank, steps))
    and all(step["type"] in ("ByteLevel", "Digits") or _keeps_all(step) for step in steps)
    and letters <= model["vocab"].keys()
    and not any(t["lstrip"] or t["rstrip"] for t in described["added_tokens"] if not t["special"])
  )


def steps_of(part: dict | None, name: str) -> list[dict]:
  """The steps of a part of a tokenizer.json, those of sequences in a row."""
  if part is None:
    return []
  return (
    [step for inner in part[name] for step in steps_of(inner, name)]
    if part["type"] == "Sequence"
    else [part]
  )


def _splits_words(steps: list[dict]) -> bool:
  """Byte-level steps, one of which splits by a known pattern, and none of which adds a blank."""
  known = False
  for step in steps:
    if step["type"] == "ByteLevel" and not _adds_blank(step):
      known = known or step.get("use_regex", True)
    elif step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS and _keeps_all(step):
      known = True
    elif step["type"] != "Digits":
      return False
  return known and steps[-1]["type"] == "ByteLevel"


def _adds_blank(step: dict) -> bool:
  return bool(step.get("add_prefix_space"))


def _keeps_all(step: dict) -> bool:
  return step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")


def _reaches_over(token: dict) -> bool:
  return token["lstrip"] or token["rstrip"] or "\n" in token["content"]
