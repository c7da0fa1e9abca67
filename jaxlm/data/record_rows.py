"""Records of ArrayRecord files as rows, read by number and tokenised when they are needed.

Nothing is tokenised beforehand and nothing is kept in memory: a corpus of any size opens at once.
Reading is Grain's own `ArrayRecordDataSource`. A group of records is decoded for each one that is
read, so files for it are written with `group_size:1`.
"""

import functools
import hashlib
import os

import numpy as np

from jaxlm.data.array_records import text_of
from jaxlm.data.errors import DataError
from jaxlm.data.files import is_url
from jaxlm.data.rows import Row, row_of
from jaxlm.data.tokenizers import Tokenizer

#: The index of a file stays on its disk: in memory it is 8 bytes a group.
OPTIONS = {"index_storage_option": "offloaded", "footer_prefetch_bytes": "0"}
ENDS = 1 << 16  # bytes at each end of a file that name its content


class RecordRows:
  """Row i is record i in the tokenizer's frame, its first seq_len + 1 tokens; the rest is left out.

  paths: ArrayRecord files on disks, in order. feature: of a tf.train.Example, or None.
  """

  def __init__(self, paths: list[str], feature: str | None, tokenizer: Tokenizer, seq_len: int):
    remote = next((path for path in paths if is_url(path)), None)
    if remote is not None:
      raise DataError(
        f"data.packing = 'records' reads files by random access, and {remote} is behind an address; copy the files "
        f"to a disk or mount their bucket, or make a store: jaxlm data tokenize"
      )
    self.paths, self.feature, self.tokenizer, self.seq_len = paths, feature, tokenizer, seq_len

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "source"}  # a worker opens its own

  @functools.cached_property
  def source(self):
    import grain

    try:
      return grain.sources.ArrayRecordDataSource(self.paths, OPTIONS)
    except (RuntimeError, ValueError, IndexError) as error:
      raise DataError(
        f"{self.paths[0]} (or one of {len(self.paths)} files) is not an ArrayRecord file, or is damaged "
        f"({str(error).splitlines()[0][:120]})"
      ) from None

  @property
  def fingerprint(self) -> str:
    said = f"{content_of(self.paths, self.feature)} {self.tokenizer.fingerprint}"
    return hashlib.sha256(said.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Row:
    try:
      record = self.source[int(index)]
    except (RuntimeError, ValueError) as error:
      raise DataError(
        f"record {index} of {self.paths[0]} and what follows cannot be read ({str(error)[:120]}); copy the files again"
      ) from None
    text = text_of(record, self.feature, f"record {index} of {self.paths[0]} and what follows")
    document = _Document(text, self.tokenizer)
    return row_of(document, 0, min(len(document.tokens), self.seq_len + 1), self.seq_len)


def content_of(paths: list[str], feature: str | None) -> str:
  """A name for the content of files, from the size and the ends of each: 10 GB are not read for it."""
  digest = hashlib.sha256(f"{feature}".encode())
  for path in paths:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
      digest.update(f"{size} ".encode() + file.read(ENDS))
      file.seek(max(size - ENDS, 0))
      digest.update(file.read(ENDS))
  return digest.hexdigest()


class _Document:
  """One text with the interface that rows are cut from."""

  def __init__(self, text: bytes, tokenizer: Tokenizer):
    ((ids, sizes),) = tokenizer.encode_counted([text])
    front, behind = tokenizer.frame
    self.given = () if tokenizer.separator in front else front
    self.tokens = np.concatenate([front, ids, behind]).astype(np.int32)
    self.sizes = np.concatenate([np.zeros(len(front)), sizes, np.zeros(len(behind))])
    self.sizes = self.sizes.astype(np.int32)

  def bytes_between(self, start: int, stop: int) -> np.ndarray:
    return self.sizes[start:stop]
