"""What every tokenizer answers; decoding goes through bytes, so it is exact wherever encoding was."""

import codecs
from collections.abc import Iterable, Sequence

import numpy as np


class Tokenizer:
  """Base of tokenizers. `separator` is the id that precedes each document; `fingerprint` names the mapping."""

  vocab_size: int
  separator: int
  fingerprint: str

  @property
  def stops(self) -> tuple[int, ...]:
    """Ids that end a document when they are generated."""
    return (self.separator,)

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 ids of one text, without separator. Text is not normalised."""
    return self.encode_batch([text])[0].astype(np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Ids of each text, any integer dtype that holds them."""
    raise NotImplementedError

  def token_bytes(self, token: int) -> bytes:
    """The bytes a token stands for; b'' for specials. Raises ValueError outside the vocabulary."""
    raise NotImplementedError

  def num_bytes(self) -> np.ndarray:
    """int32 (vocab_size,): UTF-8 bytes of each token, the denominator of bits per byte. Specials have none."""
    return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], np.int32)

  def decode_bytes(self, tokens: Iterable[int]) -> bytes:
    return b"".join(self.token_bytes(int(t)) for t in tokens)

  def decode(self, tokens: Iterable[int]) -> str:
    """Text of the tokens; specials vanish, bytes that are not UTF-8 become U+FFFD."""
    return self.decode_bytes(tokens).decode("utf-8", "replace")

  def stream(self) -> "TextStream":
    """Decoder of one token at a time, for printing while generating."""
    return TextStream(self)


class TextStream:
  """Tokens in, text out as soon as it is certain: a character whose bytes come in several tokens is held back.

  The pieces of `push` and the last one of `close` concatenate to `tokenizer.decode` of all tokens.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

  def push(self, token: int) -> str:
    return self._decoder.decode(self.tokenizer.token_bytes(int(token)))

  def close(self) -> str:
    """What is left of an unfinished character (U+FFFD)."""
    return self._decoder.decode(b"", final=True)
