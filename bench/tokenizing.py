"""Bytes per second of byte-level BPE: the library alone, word by word, and `jaxlm data tokenize`.

  python bench/tokenizing.py [--mb 40] [--processes 2]

The text is the source of the running Python's standard library and of the installed packages, cut
into documents by file, so that new words keep coming; the tokenizer has 16,000 entries and is
trained on the embedded novels. CPU seconds, of user and system, say more than wall seconds where
other programs run. Every document's tokens are compared.
"""

import argparse
import os
import pathlib
import resource
import sysconfig
import tempfile
import time

import numpy as np

from jaxlm import json_text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--mb", type=float, default=40)
  parser.add_argument("--processes", type=int, default=2)
  args = parser.parse_args()
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process
  with tempfile.TemporaryDirectory() as folder:
    os.environ["JAXLM_DATA"] = folder
    from jaxlm.data.mini import mini
    from jaxlm.data.tokenizers.bpe import BPEFileConfig, train_bpe

    documents = texts(int(args.mb * 1e6))
    size = sum(len(text.encode()) for text in documents)
    path = f"{folder}/tokenizer.json"
    train_bpe([b"".join(mini("en")[1]["train"]).decode()], 16_000).save(path)
    tokenizer = BPEFileConfig(path).load()
    print(f"{size / 1e6:.1f} MB in {len(documents)} documents, load {os.getloadavg()[0]:.1f}\n")
    print("| how | MB per CPU second | MB per second |\n| --- | ---: | ---: |")
    some = documents[: len(documents) // 8]
    part = sum(len(text.encode()) for text in some)
    want = timed("the library, one core", part, lambda: tokenizer._encode_texts(some))
    found = timed("word by word, one core", size, lambda: tokenizer.encode_batch(documents))
    assert all(np.array_equal(a, b) for a, b in zip(want, found))
    with open(f"{folder}/corpus.jsonl", "w") as out:
      out.writelines(json_text.dumps({"text": text}) + "\n" for text in documents)
    command(folder, path, size, args.processes)


def texts(size: int) -> list[str]:
  out, have = [], 0
  for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
    for path in sorted(pathlib.Path(root).rglob("*.py")):
      try:
        text = path.read_text("utf-8")
      except (UnicodeDecodeError, OSError):
        continue
      out.append(text)
      have += len(text)
      if have > size:
        return out
  return out


def timed(name: str, size: int, work):
  cpu, wall = time.process_time(), time.perf_counter()
  found = work()
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  print(f"| {name} | {size / 1e6 / cpu:.2f} | {size / 1e6 / wall:.2f} |", flush=True)
  return found


def command(folder: str, tokenizer: str, size: int, processes: int) -> None:
  """The whole command: reading JSON, the hash of every document, tokens, files and checksums."""
  from jaxlm.data.text import TextData
  from jaxlm.data.tokenize import Job, tokenize
  from jaxlm.data.tokenizers.bpe import BPEFileConfig

  source = f"text:{folder}/corpus.jsonl"
  data = TextData(source=source, seq_len=8, batch_size=1, tokenizer=BPEFileConfig(tokenizer))
  before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
  tokenize(Job(data, f"{folder}/store", shards=2 * processes, processes=processes))
  wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  name = f"`jaxlm data tokenize`, {processes} processes, their start included"
  print(f"| {name} | {size / 1e6 / cpu:.2f} | {size / 1e6 / wall:.2f} |")


if __name__ == "__main__":
  main()
