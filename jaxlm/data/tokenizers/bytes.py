"""token = byte + offset: no vocabulary, no training, exact round trip of anything."""

import dataclasses

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.errors import DataError
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.ranges import Count, Natural

NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


@dataclasses.dataclass(frozen=True)
@checked
class ByteTokenizerConfig:
  """Byte b is id b + offset. The default has 257 ids: bytes, then the separator.

  offset=0, separator=254: 256 ids, the separator being a byte that UTF-8 never uses (H-Net's way).
  offset=3, separator=1, size=384: ByT5's layout (pad 0, end 1, unknown 2, bytes, 125 extra ids).
  """

  offset: Natural = 0
  separator: Natural = 256
  size: Count | None = None

  def __post_init__(self):
    least = max(self.offset + 256, self.separator + 1)
    if self.size is not None and self.size < least:
      raise ConfigError(
        f"tokenizer.size = {self.size} does not hold bytes and separator; set it to {least} or more"
      )
    byte = self.separator - self.offset
    if 0 <= byte < 256 and byte not in NEVER_IN_UTF8:
      raise ConfigError(
        f"tokenizer.separator = {self.separator} is the id of byte 0x{byte:02x}, which text contains; "
        f"use {self.offset + 256}, or {self.offset + 254} to stay at 256 ids"
      )

  @property
  def vocab_size(self) -> int:
    return self.size or max(self.offset + 256, self.separator + 1)

  def load(self, train_documents=None, content: str = "", folder=None) -> "ByteTokenizer":
    return ByteTokenizer(self)


class ByteTokenizer(Tokenizer):
  def __init__(self, cfg: ByteTokenizerConfig):
    self.cfg, self.vocab_size, self.separator = cfg, cfg.vocab_size, cfg.separator
    self.fingerprint = f"bytes-{cfg.offset}-{cfg.separator}"

  @property
  def stops(self):
    # As released, H-Net begins documents with 254 and ends them with 255; ours do without the
    # second.
    return (254, 255) if (self.cfg.offset, self.separator) == (0, 254) else (self.separator,)

  def encode_batch(self, texts):
    out, byte = [], self.separator - self.cfg.offset
    for text in texts:
      raw = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)
      if 0 <= byte < 256 and (raw == byte).any():
        raise DataError(
          f"the text contains byte 0x{byte:02x}, which tokenizer.separator = {self.separator} claims; "
          f"binary data need a separator of {self.cfg.offset + 256}"
        )
      out.append(raw.astype(np.int32) + self.cfg.offset if self.cfg.offset else raw)
    return out

  def token_bytes(self, token):
    if not 0 <= token < self.vocab_size:
      raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
    byte = token - self.cfg.offset
    return bytes([byte]) if 0 <= byte < 256 and token != self.separator else b""
