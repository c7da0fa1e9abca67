"""ByT5's tokens, and the texts of MrT5's fine-tuning tasks.

docs/specs/mrt5.md, sections 1 and 8.
"""

import re

import numpy as np

from jaxlm.data.errors import DataError

PAD, END, UNKNOWN, OFFSET, NUM_EXTRA = 0, 1, 2, 3, 125
VOCAB_SIZE = OFFSET + 256 + NUM_EXTRA
IGNORED = -100
SPECIAL = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN} | {
  f"<extra_id_{i}>": OFFSET + 256 + i for i in range(NUM_EXTRA)
}


def check_utf8(raw: bytes) -> None:
  try:
    raw.decode()
  except UnicodeDecodeError as error:
    raise DataError(
      f"the text is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}; convert the file"
    ) from None


def encode(
  text: str | bytes, max_length: int | None = None, *, parse_special: bool = False
) -> np.ndarray:
  """int32: byte + 3 each, then the end id; at most max_length ids, the end among them.

  parse_special: literal '</s>', '<pad>', '<unk>', '<extra_id_n>' become their ids, as in the
  reference tokenizer.
  """
  raw = text.encode() if isinstance(text, str) else bytes(text)
  check_utf8(raw)
  if parse_special:
    pieces = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", raw.decode())
    ids = [
      i
      for p in pieces
      for i in ([SPECIAL[p]] if p in SPECIAL else [b + OFFSET for b in p.encode()])
    ]
  else:
    ids = [b + OFFSET for b in raw]
  if max_length is not None:
    ids = ids[: max_length - 1]
  return np.asarray([*ids, END], np.int32)


def num_bytes(labels: np.ndarray) -> np.ndarray:
  """int32: bytes of the text that each label stands for: 1, or 0 of an end, padding, an ignored
  label or a sentinel.

  Span corruption takes ids of bytes that UTF-8 never uses, 0xF5 upwards, as sentinels.
  """
  return ((labels >= OFFSET) & (labels < OFFSET + 0xF5)).astype(np.int32)


def decode(ids) -> str:
  """Text of the bytes up to the end id; ids that are no bytes are left out."""
  ids = np.asarray(ids)
  stop = np.flatnonzero(ids == END)
  ids = ids[: stop[0]] if len(stop) else ids
  return bytes((ids[(ids >= OFFSET) & (ids < OFFSET + 256)] - OFFSET).astype(np.uint8)).decode(
    errors="replace"
  )


def pad(rows: list[np.ndarray], length: int | None = None, value: int = PAD) -> np.ndarray:
  """(B, length) int32; length None: of the longest row."""
  length = length or max(map(len, rows))
  return np.stack([np.concatenate([r, np.full(length - len(r), value)]) for r in rows]).astype(
    np.int32
  )


def xnli_texts(row: dict) -> tuple[str, str]:
  return f"Premise: {row['premise']} Hypothesis: {row['hypothesis']}", str(row["label"])


def qa_texts(row: dict) -> tuple[str, str]:
  """Target: the first answer."""
  return f"Question: {row['question']} Context: {row['context']}", row["answers"][0]


def collate(
  pairs: list[tuple[str, str]], max_length: int, max_target: int | None = None
) -> dict[str, np.ndarray]:
  """Padded input ids, mask and labels (0-padded; masking them is the loss's business)."""
  tokens = pad([encode(source, max_length) for source, _ in pairs])
  return {
    "tokens": tokens,
    "valid": (tokens != PAD).astype(np.int32),
    "targets": pad([encode(target, max_target) for _, target in pairs]),
  }
