"""A store of shards holds every document once, is read in slices, and gives the same global batches
to any number of hosts.
"""

import dataclasses
import importlib.util
import json
import pathlib
import random
import time

import fsspec
import numpy as np
import pytest

from jaxlm.data import DataError
from jaxlm.data.lanes import Lanes, permuted
from jaxlm.data.rows import Windows
from jaxlm.data.shards import ShardedStore, damaged_files
from jaxlm.data.splits import SPLITS
from jaxlm.data.text import TextData
from jaxlm.data.tokenize import Job, tokenize
from jaxlm.data.tokenizers.bpe import TrainedBPEConfig
from jaxlm.data.tokenizers.chars import CharTokenizerConfig

rng = random.Random(1)
TEXTS = [f"document {i} " + "".join(rng.choices("abc ef\n", k=100)) for i in range(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  return TextData(source=f"text:{folder}/a.jsonl", seq_len=8, batch_size=4)


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
  out = str(tmp_path_factory.mktemp("store") / "tokens")
  tokenize(Job(corpus, out, shards=4))
  return out


def documents(tokens, starts):
  """The documents of a store, sorted; a document and its frame are its bytes."""
  tokens, starts = np.asarray(tokens[0 : len(tokens)]), np.asarray(starts)
  return sorted(tokens[a:b].tobytes() for a, b in zip(starts, starts[1:]))


def test_every_document_is_there_once_with_the_tokens_of_a_local_store(corpus, store):
  for split in SPLITS:
    local, shards = corpus.store(split), ShardedStore(store, split)
    assert len(local) == len(shards) > 0
    assert documents(local.tokens, local.starts) == documents(shards.tokens, shards.starts)
    total = shards.bytes_between(0, len(shards)).sum()
    assert total == local.bytes_between(0, len(local)).sum()


def test_slices_over_shards_are_those_of_the_whole(store):
  tokens = ShardedStore(store, "train").tokens
  whole = tokens[0 : len(tokens)]
  for _ in range(50):
    a, b = sorted(rng.choices(range(len(tokens) + 1), k=2))
    np.testing.assert_array_equal(tokens[a:b], whole[a:b])


@pytest.mark.parametrize("tokenizer", [TrainedBPEConfig(300), CharTokenizerConfig(20)])
def test_a_tokenizer_that_was_trained_travels_with_the_store(
  corpus, tmp_path, monkeypatch, tokenizer
):
  data = dataclasses.replace(corpus, tokenizer=tokenizer)
  tokenize(Job(data, str(tmp_path / "out"), shards=2))
  local = data.store("train")
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "another machine"))
  there = dataclasses.replace(data, source=f"store:{tmp_path}/out").store("train")
  assert documents(local.tokens, local.starts) == documents(there.tokens, there.starts)
  assert local.bytes_between(0, len(local)).sum() == there.bytes_between(0, len(there)).sum()


def test_a_stopped_store_goes_on_with_the_missing_shards_and_ends_with_the_same_files(
  corpus, store, tmp_path
):
  out = tmp_path / "tokens"

  def files():
    return {f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()}

  said = tokenize(Job(corpus, str(out), shards=4, host=1, hosts=2))
  assert "shards of other hosts are missing" in said[-1]
  with pytest.raises(DataError, match=r"is not finished: of split 'train' 2 of 4 .*\(0, 2\)"):
    len(ShardedStore(str(out), "train"))
  assert len(ShardedStore(f"{out}#partial", "train").shards) == 2
  there = files()
  tokenize(Job(corpus, str(out), shards=4, at_once=1))
  assert there.items() <= files().items()
  assert files() == {
    f.relative_to(store): f.read_bytes() for f in pathlib.Path(store).rglob("*") if f.is_file()
  }


def batches_of(data, hosts, count=6, split="train", repeat=True):
  """The first global batches, put together from the hosts' rows."""
  parts = [
    iter(data.build(split, seed=5, process_index=h, process_count=hosts, repeat=repeat))
    for h in range(hosts)
  ]
  out = []
  for _ in range(count):
    rows = [next(part) for part in parts]
    out.append(
      {k: np.stack([r[k] for r in rows], 1).reshape(4, *rows[0][k].shape[1:]) for k in rows[0]}
    )
  return out


@pytest.fixture(scope="module")
def sources(corpus, store, tmp_path_factory):
  pyarrow = pytest.importorskip("pyarrow")
  from array_record.python import array_record_module
  from pyarrow import parquet

  folder = tmp_path_factory.mktemp("kinds")
  parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "a.parquet")
  (folder / "a.txt").write_text("\n".join(TEXTS))
  writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
  for text in TEXTS:
    writer.write(text.encode())
  writer.close()
  (folder / "saved").mkdir()
  table = pyarrow.table({"text": TEXTS})
  with pyarrow.ipc.new_stream(folder / "saved" / "data.arrow", table.schema) as out:
    out.write_table(table, 50)
  (folder / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
  packed = {}
  if importlib.util.find_spec("zstandard"):  # extra zstd
    import zstandard

    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    packed = {"zstd": f"text:{folder}/a.jsonl.zst#text"}
  memory = fsspec.filesystem("memory")
  memory.put(store, "/store-of-shards", recursive=True)
  return packed | {
    "jsonl": corpus.source,
    "text": f"text:{folder}/a.txt",
    "bytes": f"bytes:{folder}/a.txt",
    "parquet": f"parquet:{folder}/a.parquet",
    "array_record": f"array_record:{folder}/a.array_record",
    "mini": "mini:udhr",
    "hf": f"hf:{folder}/saved",
    "store": f"store:{store}",
    "store behind an address": "store:memory://store-of-shards",
  }


@pytest.mark.parametrize("packing", ["windows", "packed"])
def test_one_two_and_four_hosts_read_the_same_global_batches(sources, corpus, packing):
  for kind, source in sources.items():
    data = dataclasses.replace(corpus, source=source, packing=packing)
    one = batches_of(data, 1)
    for hosts in (2, 4):
      for a, b in zip(one, batches_of(data, hosts)):
        for name in a:
          np.testing.assert_array_equal(a[name], b[name], err_msg=f"{kind}, {hosts} hosts, {name}")


def test_a_bucket_and_a_disk_give_the_same_batches_and_evaluation_reads_every_target_once(
  sources, corpus
):
  disk = dataclasses.replace(corpus, source=sources["store"])
  bucket = dataclasses.replace(corpus, source=sources["store behind an address"])
  for a, b in zip(batches_of(disk, 1), batches_of(bucket, 2)):
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
  scored = sum(
    int(batch["loss_weights"].sum()) for batch in bucket.build("test", seed=0, repeat=False)
  )
  local = list(disk.build("test", seed=0, repeat=False))
  for a, b in zip(local, bucket.build("test", seed=0, repeat=False)):
    np.testing.assert_array_equal(a["targets"], b["targets"])
  assert scored == len(ShardedStore(disk.source.removeprefix("store:"), "test")) - 1


def test_an_epoch_of_lanes_is_every_block_once_and_the_next_has_another_order(store):
  windows = Windows(ShardedStore(store, "train"), 8)
  lanes = Lanes(windows, 7, seed=0)
  assert lanes.rows > 1
  count = lanes.blocks * lanes.rows
  assert len(windows) - count < lanes.rows
  assert lanes.blocks % 7, "the lanes end their epoch apart"

  def epoch(number):
    """The rows of an epoch, in the order of its blocks."""
    slots = range(number * lanes.blocks, (number + 1) * lanes.blocks)
    for turn, lane in (divmod(slot, 7) for slot in slots):
      for place in range(lanes.rows):
        yield lanes[(turn * lanes.rows + place) * 7 + lane]["tokens"].tobytes()

  first, second = list(epoch(0)), list(epoch(1))
  assert sorted(first) == sorted(windows[i]["tokens"].tobytes() for i in range(count))
  assert sorted(first) == sorted(second) and first != second


def test_permutations_are_permutations_and_depend_on_their_key():
  for count in (1, 2, 3, 7, 64, 100):
    assert sorted(permuted(i, count, "a") for i in range(count)) == list(range(count))
  assert [permuted(i, 100, "a") for i in range(100)] != [permuted(i, 100, "b") for i in range(100)]


def test_a_position_is_resumed_in_the_middle_of_an_epoch(sources, corpus):
  data = dataclasses.replace(corpus, source=sources["store behind an address"])
  first = iter(data.build("train", seed=1))
  for _ in range(5):
    next(first)
  resumed = iter(data.build("train", seed=1))
  resumed.set_state(first.get_state())
  for _ in range(5):
    np.testing.assert_array_equal(next(first)["tokens"], next(resumed)["tokens"])


def test_another_tokenizer_or_corpus_or_a_damaged_shard_is_refused(corpus, store, tmp_path):
  other = dataclasses.replace(corpus, source=f"store:{store}", tokenizer=TrainedBPEConfig(300))
  with pytest.raises(DataError, match="was made with .*tokenizer.* ByteTokenizerConfig"):
    other.build("train", seed=0)
  copy = tmp_path / "tokens"
  tokenize(Job(corpus, str(copy), shards=2))
  with pytest.raises(DataError, match=r"was begun with --shards=2; go on with that"):
    tokenize(Job(corpus, str(copy), shards=3))
  with pytest.raises(DataError, match="was begun with the corpus 'text:.*as it was then"):
    tokenize(Job(dataclasses.replace(corpus, source="mini:udhr"), str(copy), shards=2))
  assert not list(damaged_files(str(copy)))
  shard = copy / "train" / "00001-of-00002.tokens"
  raw = shard.read_bytes()
  shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
  assert [path.endswith(shard.name) for path, _ in damaged_files(str(copy))] == [True]
  shard.write_bytes(raw[:-5])
  with pytest.raises(DataError, match="is a partial shard"):
    dataclasses.replace(corpus, source=f"store:{copy}").build("train", seed=0)
  memory = fsspec.filesystem("memory")
  memory.put(str(copy), "/partial-shard", recursive=True)
  rows = ShardedStore("memory://partial-shard", "train").tokens
  with pytest.raises(DataError, match="is a partial shard: it ends before number"):
    rows[len(rows) - 10 : len(rows)]
  with pytest.raises(DataError, match="is no store of tokens: it has no store.json"):
    dataclasses.replace(corpus, source=f"store:{tmp_path}/nowhere").build("train", seed=0)


def test_ten_gigabytes_open_in_a_second_and_are_read_in_little_memory(corpus, store, tmp_path):
  big = tmp_path / "big"
  (big / "train").mkdir(parents=True)
  header = json.loads((pathlib.Path(store) / "store.json").read_text())
  (big / "store.json").write_text(json.dumps(header | {"splits": header["splits"] | {"train": 1}}))
  (big / "num_bytes.npy").write_bytes((pathlib.Path(store) / "num_bytes.npy").read_bytes())
  count = 5 << 30  # two bytes each
  with open(big / "train" / "00000-of-00001.tokens", "wb") as file:
    file.truncate(2 * count)  # sparse
  entry = {"name": "00000-of-00001", "documents": 1, "tokens": count, "text_bytes": count}
  entry["files"] = {"00000-of-00001.tokens": {"bytes": 2 * count, "sha256": ""}}
  (big / "index.json").write_text(json.dumps({"splits": {"train": [entry]}}))
  data = dataclasses.replace(corpus, source=f"store:{big}", seq_len=1024)
  before, start = resident(), time.perf_counter()
  batches = iter(data.build("train", seed=0))
  next(batches)
  took = time.perf_counter() - start
  for _ in range(100):
    next(batches)
  assert took < 5 and resident() - before < 300e6  # a second when nothing else runs


def resident() -> int:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096
