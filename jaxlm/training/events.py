"""TensorBoard event files of scalars, without TensorBoard: records of protocol buffers.

A record is its length (8 bytes), a checksum of that, the bytes, and a checksum of them (TFRecord).
An event has wall_time (1), step (2), file_version (3), summary (5) or session_log (7); a scalar is
a summary's value (1) of tag (1) and simple_value (2). The packages that write these files import
every framework that is installed, which takes seconds.
"""

import functools
import pathlib
import re
import socket
import struct
import time

DOUBLE, FLOAT, VARINT, BYTES = 1, 5, 0, 2  # wire types


class EventFile:
  """Appends scalars to a new event file of a folder.

  purge_step: TensorBoard forgets what other files of the folder say of this step and later ones.
  """

  def __init__(self, folder, *, purge_step: int | None = None):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    self.file = open(folder / name, "ab")
    self._write(_field(3, BYTES, b"brain.Event:2"))
    if purge_step is not None:
      start = _field(1, VARINT, 1)  # SessionLog.status = START
      self._write(_field(2, VARINT, purge_step) + _field(7, BYTES, start))

  def scalar(self, tag: str, value: float, step: int) -> None:
    """Characters of the tag that TensorBoard does not take become '_'."""
    tag = re.sub(r"[^-/\w.]", "_", tag).encode()
    entry = _field(1, BYTES, tag) + _field(2, FLOAT, value)
    self._write(_field(2, VARINT, step) + _field(5, BYTES, _field(1, BYTES, entry)))

  def flush(self) -> None:
    self.file.flush()

  def close(self) -> None:
    self.file.close()

  def _write(self, event: bytes) -> None:
    event = _field(1, DOUBLE, time.time()) + event
    size = struct.pack("<Q", len(event))
    self.file.write(size + _checksum(size) + event + _checksum(event))


def _field(number: int, wire: int, value) -> bytes:
  key = _varint(number << 3 | wire)
  if wire == BYTES:
    return key + _varint(len(value)) + value
  if wire == VARINT:
    return key + _varint(value)
  return key + struct.pack("<d" if wire == DOUBLE else "<f", value)


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def _checksum(data: bytes) -> bytes:
  """CRC-32C, masked as TFRecord does: rotated right by 15 bits, and a constant added."""
  crc, table = 0xFFFFFFFF, _table()
  for byte in data:
    crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _table() -> list[int]:
  """Of Castagnoli's polynomial, reflected."""
  out = []
  for n in range(256):
    for _ in range(8):
      n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    out.append(n)
  return out
