"""ArrayRecord files as documents: records of text, or serialised tf.train.Examples with a text
feature.
"""

from collections.abc import Iterator

from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.data.files import local_copy

READ_AHEAD = "readahead_buffer_size:16777216"  # bytes


def read_records(paths: list[str], feature: str | None = None) -> Iterator[bytes]:
  """The texts in order: a feature of a tf.train.Example (`text`, or the one named), or the whole
  record.
  """
  from array_record.python import array_record_module

  for path in paths:
    try:
      # In sequence, so that each group of records is decoded once: a call with indices decodes
      # every group that it touches.
      with local_copy(str(path)) as local:
        reader = array_record_module.ArrayRecordReader(local, READ_AHEAD)
        for number in range(reader.num_records()):
          yield text_of(reader.read(), feature, f"{path}, record {number}")
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
      if isinstance(error, DataError):
        raise
      raise DataError(
        f"{path} is not an ArrayRecord file, or is damaged ({str(error).splitlines()[0][:120]}); "
        f"plain files are read with 'text:' or 'bytes:'"
      ) from None


def text_of(record: bytes, feature: str | None, where: str) -> bytes:
  """The text of a record. An Example without the feature is refused: its bytes are no text."""
  features = features_of(record)
  if features is None:
    if feature is not None:
      raise DataError(
        f"{where} is no tf.train.Example and has no feature {feature!r}; leave out '#{feature}' to read records whole"
      )
    return record
  wanted = feature or "text"
  if wanted not in features:
    raise DataError(
      f"{where} is a tf.train.Example without a feature {wanted!r}; {nearest(wanted, features)}; name the one that "
      f"holds the text behind '#', as in 'array_record:c4-*.array_record#{next(iter(features))}'"
    )
  try:  # Feature { bytes_list { value: text } }; a Feature of numbers has another field in its place
    texts = [text for entry in fields(features[wanted], 1, only=(1,)) for text in fields(entry, 1)]
  except IndexError:
    raise DataError(
      f"{where}: feature {wanted!r} holds numbers, wanted text; {nearest(wanted, set(features) - {wanted})}"
    ) from None
  if len(texts) > 1:
    raise DataError(
      f"{where}: feature {wanted!r} holds {len(texts)} texts, wanted one; write them as one, or as records of their own"
    )
  return texts[0] if texts else b""


def features_of(record: bytes) -> dict[str, bytes] | None:
  """{name: serialised Feature} of a tf.train.Example, or of the context of a SequenceExample; None
  for any other bytes.
  """
  try:
    found = {}
    for features in fields(record, 1, only=(1, 2)):
      for entry in fields(features, 1, only=(1,)):
        (name,), value = fields(entry, 1), fields(entry, 2)
        found[name.decode("utf-8")] = value[0] if value else b""
    return found or None
  except (IndexError, ValueError):  # UnicodeDecodeError is one
    return None


def fields(message: bytes, number: int, only: tuple[int, ...] = (1, 2, 3)) -> list[bytes]:
  """Values of a length-delimited protobuf field; IndexError if `message` holds anything else or
  ends early.
  """
  out, at = [], 0
  while at < len(message):
    if message[at] & 7 != 2 or message[at] >> 3 not in only:
      raise IndexError(at)
    tag, at, size, shift = message[at] >> 3, at + 1, 0, 0
    while True:
      byte, at = message[at], at + 1
      size, shift = size | (byte & 127) << shift, shift + 7
      if byte < 128:
        break
    if at + size > len(message):
      raise IndexError(at)
    if tag == number:
      out.append(message[at : at + size])
    at += size
  return out
