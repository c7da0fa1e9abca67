"""What every tokenizer answers; decoding goes through bytes, so it is exact wherever encoding was."""

import codecs
from collections.abc import Iterable, Sequence

import numpy as np


class Tokenizer:
  """Base of tokenizers. Three things that may be one token, and are for bytes and characters:

  begin: ids in front of every text, a prompt included. closing: ids behind every text. separator:
  stands between documents.
  fingerprint: names the mapping and these. exact_bytes: whether `num_bytes` of its tokens sums to
  every text's length.
  """

  vocab_size: int
  separator: int
  fingerprint: str
  closing: tuple[int, ...] = ()
  exact_bytes: bool = True

  @property
  def begin(self) -> tuple[int, ...]:
    return (self.separator,)

  @property
  def stops(self) -> tuple[int, ...]:
    """Ids that end a text when they are generated."""
    return (self.separator,)

  @property
  def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and behind each document of a corpus. The separator stands in front, or behind
    where a text has a begin
    of its own: s d0 s d1, or <s> d0 </s> <s> d1 </s>."""
    front = self.begin or (self.separator,)
    behind = () if self.closing == (self.separator,) else self.closing
    return (front, behind) if self.separator in front else (front, (*behind, self.separator))

  def prompt(self, text: str) -> np.ndarray:
    """int32 ids that a model reads in order to continue `text`; never empty."""
    ids = np.asarray([*self.begin, *self.encode(text), *self.closing], np.int32)
    return ids if len(ids) else np.asarray(self.frame[0], np.int32)

  def encode(self, text: str | bytes) -> np.ndarray:
    """int32 ids of one text, without separator. Text is not normalised."""
    return self.encode_batch([text])[0].astype(np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """Ids of each text, any integer dtype that holds them."""
    raise NotImplementedError

  def encode_counted(self, texts: Sequence[str | bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, bytes of the text that each of them stands for) of each text; the bytes sum to its
    UTF-8 length.
    """
    sizes = self.num_bytes()
    return [(ids, sizes[ids]) for ids in self.encode_batch(texts)]

  def token_bytes(self, token: int) -> bytes:
    """The bytes a token stands for; b'' for specials. Raises ValueError outside the vocabulary."""
    raise NotImplementedError

  def num_bytes(self) -> np.ndarray:
    """int32 (vocab_size,): UTF-8 bytes that each token spells. Specials have none.

    Of a text's own bytes see `encode_counted`.
    """
    return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], np.int32)

  def decode_bytes(self, tokens: Iterable[int]) -> bytes:
    """Ids behind the vocabulary, which a model with a larger table may draw, stand for nothing."""
    return b"".join(self.token_bytes(int(t)) for t in tokens if t < self.vocab_size)

  def decode(self, tokens: Iterable[int]) -> str:
    """Text of the tokens; specials vanish, bytes that are not UTF-8 become U+FFFD."""
    return self.decode_bytes(tokens).decode("utf-8", "replace")

  def stream(self) -> "TextStream":
    """Decoder of one token at a time, for printing while generating."""
    return TextStream(self)


class TextStream:
  """Tokens in, text out as soon as it is certain: a character whose bytes come in several tokens is
  held back.

  The pieces of `push` and the last one of `close` concatenate to `tokenizer.decode` of all tokens.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

  def push(self, token: int) -> str:
    return self._decoder.decode(self.tokenizer.decode_bytes([token]))

  def close(self) -> str:
    """What is left of an unfinished character (U+FFFD)."""
    return self._decoder.decode(b"", final=True)
