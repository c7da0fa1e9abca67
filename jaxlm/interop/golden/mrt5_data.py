"""Golden checks of MrT5's data: span corruption, the byte tokenizer, diagnostics, fine-tuning batches."""

import numpy as np

from jaxlm.data import byte_t5, span_corruption
from jaxlm.data.tasks import diagnostic
from jaxlm.interop.golden.case import EXACT


def spans(case):
  for c in case.config["cases"]:
    i, rng = c["index"], np.random.default_rng(c["numpy_seed"])
    setting = c["noise_density"], c["mean_span"]
    sizes = span_corruption.lengths(c["inputs_length"], *setting)
    case.require(
      f"out/lengths_{i}", sizes == (c["tokens_length"], c["targets_length"]), f"lengths {sizes}"
    )
    tokens, masks = case[f"in/tokens_{i}"], case[f"in/noise_mask_{i}"]
    drawn = np.stack([span_corruption.noise_mask(tokens.shape[1], *setting, rng) for _ in tokens])
    case.require(
      f"out/noise_mask_{i}",
      np.array_equal(drawn, masks.astype(bool)),
      "another mask from the same seed",
    )
    pairs = [span_corruption.corrupt(t, m) for t, m in zip(tokens, masks)]
    inputs, labels = (np.stack(x) for x in zip(*pairs))
    case.compare(f"out/input_ids_{i}", inputs)
    case.compare(f"out/labels_{i}", labels)
    case.compare(f"out/decoder_input_ids_{i}", span_corruption.shift_right(labels))
  i = 0
  while f"in/hand_mask_{i}" in case:
    pairs = [
      span_corruption.corrupt(t, m)
      for t, m in zip(case[f"in/hand_tokens_{i}"], case[f"in/hand_mask_{i}"])
    ]
    inputs, labels = (np.stack(x) for x in zip(*pairs))
    case.compare(f"out/hand_input_ids_{i}", inputs)
    case.compare(f"out/hand_labels_{i}", labels)
    i += 1
  table = case["out/length_table"]
  got = [(*row[:3], *span_corruption.lengths(int(row[0]), row[1], row[2])) for row in table]
  case.compare("out/length_table", np.asarray(got, np.float64), EXACT)


def tokenizer(case):
  for i in range(case.config["n"]):
    raw, limit = case[f"in/utf8_{i}"].tobytes(), case.config["max_length_trunc"]
    special = any(name.encode() in raw for name in byte_t5.SPECIAL)
    case.compare(f"out/ids_{i}", byte_t5.encode(raw, parse_special=special))
    cut = byte_t5.encode(raw, limit, parse_special=special)
    case.compare(f"out/ids_trunc{limit}_{i}", byte_t5.pad([cut], limit)[0])
    own = byte_t5.encode(raw)
    case.require(
      f"out/raw_{i}",
      np.array_equal(own[:-1] - 3, case[f"in/utf8_{i}"]),
      "raw bytes were taken for special ids",
    )
  case.compare("out/extra_id_0", byte_t5.SPECIAL["<extra_id_0>"])
  case.compare("out/extra_id_124", byte_t5.SPECIAL["<extra_id_124>"])
  case.compare("out/vocab_size", byte_t5.VOCAB_SIZE)


def diagnostics(case):
  config = case.config
  for key in [k for k in case.arrays if k.startswith("in/")]:
    task, length = key[3:].rsplit("_", 1)
    want = case[f"out/{key[3:]}"]
    if task in config["replayable_from_seed"]:
      rng = np.random.default_rng(config["seed"])
      rows = [diagnostic.row(task, rng, int(length)) for _ in range(config["n"])]
      inputs, labels = (np.stack(x) for x in zip(*rows))
      case.require(
        f"out/inputs_{task}", np.array_equal(inputs, case[key]), "other inputs from the same seed"
      )
    else:  # the rule must hold for the stored texts
      texts = [byte_t5.decode(row) for row in case[key]]
      labels = byte_t5.pad(
        [byte_t5.encode(diagnostic.target(task, text)) for text in texts], want.shape[1]
      )
    case.compare(f"out/{key[3:]}", np.maximum(labels, 0) if want.min() >= 0 else labels)


def collators(case):
  for name, texts, limit in (("xnli", byte_t5.xnli_texts, 1024), ("qa", byte_t5.qa_texts, 2048)):
    batch = byte_t5.collate([texts(row) for row in case.config[name]], limit)
    case.compare(f"out/{name}_input_ids", batch["tokens"])
    case.compare(f"out/{name}_attention_mask", batch["valid"])
    case.compare(f"out/{name}_labels", batch["targets"])
