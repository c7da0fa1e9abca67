"""`data.packing = 'records'`: ArrayRecord files by random access, a row a record."""

import os
import pickle
import random
import time

import numpy as np
import pytest
from array_record.python import array_record_module

from jaxlm.data import DataError
from jaxlm.data.text import TextData

rng = random.Random(0)
TEXTS = {
  split: [f"{split} {i} " + "x" * rng.randrange(0, 30) for i in range(count)]
  for split, count in (("train", 40), ("validation", 6))
}


def write(path, texts):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for text in texts:
    writer.write(text.encode())
  writer.close()


@pytest.fixture
def data(tmp_path):
  for part in range(2):
    write(tmp_path / f"train-{part}.array_record", TEXTS["train"][part::2])
  write(tmp_path / "validation-0.array_record", TEXTS["validation"])
  source = f"array_record:{tmp_path}/{{split}}-*.array_record"
  return TextData(source=source, seq_len=24, batch_size=4, packing="records")


def rows_of(data, split="train", hosts=1, batches=10, repeat=True, seed=3):
  parts = [
    iter(data.build(split, seed=seed, process_index=h, process_count=hosts, repeat=repeat))
    for h in range(hosts)
  ]
  out = []
  for _ in range(batches):
    read = [next(part) for part in parts]
    out.append({k: np.stack([r[k] for r in read], 1).reshape(4, -1) for k in read[0]})
  return out


def test_a_row_is_a_record_in_its_frame_cut_to_the_length(data):
  tokenizer, rows = data.load_tokenizer(), data.records("train")
  texts = TEXTS["train"][::2] + TEXTS["train"][1::2]  # file after file
  assert len(rows) == len(texts)
  for text, row in zip(texts, (rows[i] for i in range(len(rows)))):
    ids = [*tokenizer.frame[0], *text.encode()][:25]
    n = len(ids) - 1
    np.testing.assert_array_equal(row["targets"][:n], ids[1:])
    np.testing.assert_array_equal(row["tokens"][:n], ids[:-1])
    assert row["loss_weights"].sum() == n and row["target_bytes"].sum() == min(len(text), 24)
    assert not row["targets"][n:].any() and len(row["tokens"]) == 24
    assert set(row["segment_ids"][: min(n + 1, 24)]) == {1}


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_what_one_reads_and_every_record_comes_once_an_epoch(data, hosts):
  one, several = rows_of(data), rows_of(data, hosts=hosts)
  for a, b in zip(one, several):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  seen = sorted(bytes(row.astype(np.uint8)) for batch in one for row in batch["targets"])
  rows = data.records("train")
  assert seen == sorted(bytes(rows[i]["targets"].astype(np.uint8)) for i in range(len(rows)))
  evaluated = list(data.build("validation", seed=0, repeat=False))
  assert sum((batch["loss_weights"].sum(1) > 0).sum() for batch in evaluated) == 6


def test_a_position_resumes_and_is_refused_on_other_records(data, tmp_path):
  stream = iter(data.build("train", seed=3))
  for _ in range(3):
    next(stream)
  state, want = stream.get_state(), next(stream)
  again = iter(data.build("train", seed=3))
  again.set_state(state)
  np.testing.assert_array_equal(next(again)["tokens"], want["tokens"])
  write(tmp_path / "train-1.array_record", TEXTS["train"][1::2][:-1] + ["another"])
  with pytest.raises(DataError, match="the saved position was read with data"):
    iter(data.build("train", seed=3)).set_state(state)
  assert pickle.loads(pickle.dumps(data.records("train")))[0]["tokens"].shape == (24,)


@pytest.mark.parametrize(
  "source, said",
  [
    ("text:{}/a.txt", "wants ArrayRecord files with their splits in the path"),
    ("array_record:{}/train-*.array_record", "wants ArrayRecord files with their splits"),
    ("array_record:{}/{{split}}/none-*.array_record", "no file matches"),
    ("array_record:memory://b/{{split}}-*.array_record", "no file matches memory://b"),
    ("array_record:{}/{{split}}-*.array_record#body", "has no feature 'body'; leave out '#body'"),
  ],
)
def test_what_cannot_be_read_so_is_refused_with_the_remedy(data, tmp_path, source, said):
  wrong = TextData(source=source.format(tmp_path), seq_len=24, batch_size=4, packing="records")
  with pytest.raises(DataError, match=said):
    next(iter(wrong.build("train", seed=0)))


@pytest.mark.slow
def test_ten_gigabytes_of_records_open_in_a_second_and_under_300_mb(tmp_path):
  block = np.random.default_rng(0).integers(32, 127, 1 << 22, dtype=np.uint8).tobytes()
  text = [block[i : i + 4096].decode() for i in range(0, len(block), 4096)]
  write(tmp_path / "one", text * 8)  # 32 MiB, and not packed to nothing
  size = os.path.getsize(tmp_path / "one")
  count = -(-(10 << 30) // size)
  for i in range(count):
    os.link(tmp_path / "one", tmp_path / f"train-{i:05d}.array_record")
  source = f"array_record:{tmp_path}/{{split}}-*.array_record"
  data = TextData(source=source, seq_len=1024, batch_size=8, packing="records")
  next(iter(data.build("train", seed=0)))  # imports
  before, start = resident(), time.perf_counter()
  stream = iter(data.build("train", seed=1))
  next(stream)
  took = time.perf_counter() - start
  for _ in range(50):
    next(stream)
  assert len(data.records("train")) == count * 8192
  assert took < 5 and resident() - before < 300e6, (took, resident() - before)


def resident() -> int:
  return int(open("/proc/self/statm").read().split()[1]) * 4096
