"""Begin, end and separator of a published tokenizer, read from its files as Hugging Face's library
reads them.

  begin, closing   what `tokenizer.json`'s post-processor puts before and behind a text: <s> TEXT, TEXT </s>, [CLS] TEXT [SEP]
  ends             what a model ends a text with: `eos_token` of tokenizer_config.json and special_tokens_map.json,
                   `eos_token_id` of generation_config.json, or of config.json without one
  separator        what stands between the documents of training rows

`add_bos_token` and `add_eos_token` of tokenizer_config.json are not read: transformers 5 ignores
them beside a tokenizer.json.
"""

import json
import pathlib
from typing import NamedTuple

import tokenizers as hf

from jaxlm.data.errors import DataError

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
COMPANIONS = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "config.json",
)
PROBES = ("a", "1", ".", "A", "é")  # texts of which a tokenizer knows at least one


class Marks(NamedTuple):
  begin: tuple[int, ...]
  closing: tuple[int, ...]
  ends: tuple[int, ...]
  separator: int


def read_marks(
  tokenizer: hf.Tokenizer,
  folder: pathlib.Path,
  where: str,
  *,
  begin: str | None = None,
  end: str | None = None,
  separator: str | None = None,
) -> Marks:
  """folder: where the tokenizer's file lies. A name given here replaces what they say.

  begin = "": nothing in front of a text. end = "": nothing behind it, and only the separator ends
  one.
  """
  names, ids = _declared_ends(folder)
  declared = [i for i in (tokenizer.token_to_id(name) for name in names) if i is not None]
  declared += [i for i in ids if 0 <= i < tokenizer.get_vocab_size(with_added_tokens=True)]
  usual = _usual(tokenizer)
  front, behind = _around(tokenizer)
  if begin is not None:
    front = (_id(tokenizer, "begin", begin, where),) if begin else ()
  ends = declared or usual
  if end is not None:
    ends = [_id(tokenizer, "end", end, where)] if end else []
    behind = (*ends,) if behind else ()
  if separator is not None:
    between = _id(tokenizer, "separator", separator, where)
  elif found := [i for i in usual if i in ends] or usual or ends:
    between = found[0]
  else:
    raise DataError(
      f"{where} has no token {' or '.join(map(repr, SEPARATORS))}; name its end-of-text token in "
      f"tokenizer.separator"
    )
  return Marks(front, behind, tuple(dict.fromkeys(ends)), between)


def declared_specials(tokenizer: hf.Tokenizer, folder: pathlib.Path) -> list[str]:
  """Tokens of the vocabulary that the files beside it name as begin, end, unknown, ..

  and that are no special tokens in it.
  """
  special = {
    token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
  }
  named = [
    name
    for file in COMPANIONS[:2]
    for key, value in _read(folder / file).items()
    if key.endswith("_token")
    for name in [_name(value)]
    if name is not None
  ]
  return [
    name
    for name in dict.fromkeys(named)
    if name not in special and tokenizer.token_to_id(name) is not None
  ]


def _usual(tokenizer: hf.Tokenizer) -> list[int]:
  """Ids of the usual names, special tokens where any of them is one."""
  special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
  there = [i for i in map(tokenizer.token_to_id, SEPARATORS) if i is not None]
  return [i for i in there if i in special] or there


def _around(tokenizer: hf.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Ids that the post-processor puts before and behind a text."""
  for text in PROBES:
    encoding = tokenizer.encode(text)
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if own:
      return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])
  return (), ()


def _declared_ends(folder: pathlib.Path) -> tuple[list[str], list[int]]:
  """(names, ids) of the end tokens that the files beside tokenizer.json declare."""
  names = []
  for file in COMPANIONS[:2]:
    name = _name(_read(folder / file).get("eos_token"))
    if name is not None:
      names.append(name)
  file = folder / "generation_config.json"
  ids = _read(file if file.is_file() else folder / "config.json").get("eos_token_id")
  return names, [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def _name(token) -> str | None:
  """Of an entry of these files: a text, or a mapping that holds it."""
  name = token.get("content") if isinstance(token, dict) else token
  return name if isinstance(name, str) else None


def _read(file: pathlib.Path) -> dict:
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text("utf-8"))
  except (ValueError, OSError) as error:
    raise DataError(
      f"{file} cannot be read: {error}; mend it, or move it away from the tokenizer's file"
    ) from None
  return found if isinstance(found, dict) else {}


def _id(tokenizer: hf.Tokenizer, field: str, name: str, where: str) -> int:
  found = tokenizer.token_to_id(name)
  if found is None:
    special = [
      token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    ]
    raise DataError(
      f"tokenizer.{field} = {name!r}: {where} has no token {name!r}; its special tokens are "
      f"{', '.join(map(repr, special[:12])) or 'none'}"
    )
  return found
