"""Sources, tokenizers, packing: every pipeline is a Grain dataset, seeded, checkpointable,
shardable by host.

A data config is a frozen dataclass of base `jaxlm.data.base.DataConfig` with `seq_len`,
`batch_size` (global, in sequences), `vocab_size` and

  build(split, *, seed, process_index=0, process_count=1, repeat=True) -> grain.IterDataset

of host-local numpy batches (batch_size / process_count, seq_len): int32 `tokens`, `targets`,
`segment_ids` (from 1; 0 is padding), `positions`, `target_bytes` (UTF-8 bytes of each target) and
float32 `loss_weights`. Data of another form have the fields that their objective's docstring lists:
insertion (`jaxlm.data.forms`) no `targets`, but `slots`, `missing`, `num_missing` and one loss
weight per sequence. One that reads a corpus also has `batch_fields`, {name: (shape, dtype)} of a
global batch, so that preflight needs no data.
"""

from jaxlm.config import Kinds
from jaxlm.data.errors import DataError

DATA = Kinds(
  "data",
  {
    "bigram": "jaxlm.data.bigram:BigramData",
    "backtracking": "jaxlm.data.tasks.backtracking:BacktrackingData",
    "choices": "jaxlm.data.tasks.choices:ChoicesData",
    "hidden_text": "jaxlm.data.hidden_text:HiddenTextData",
    "registers": "jaxlm.data.tasks.registers:RegisterData",
    "star_graphs": "jaxlm.data.tasks.star_graphs:StarGraphData",
    "diagnostic": "jaxlm.data.tasks.diagnostic:DiagnosticData",
    "mixture": "jaxlm.data.mixture:MixtureData",
    "needles": "jaxlm.data.needles:NeedleData",
    "passages": "jaxlm.data.passages:PassageData",
    "pairs": "jaxlm.data.needles:PairsData",
    "repeated_words": "jaxlm.data.needles:RepeatedWordsData",
    "scenes": "jaxlm.data.scenes:SceneData",
    "span_corruption": "jaxlm.data.corrupted_text:SpanCorruptionData",
    "spelling": "jaxlm.data.tasks.text_pairs:SpellingData",
    "text": "jaxlm.data.text:TextData",
    "tydiqa": "jaxlm.data.tasks.text_pairs:TyDiQAData",
    "word_search": "jaxlm.data.tasks.text_pairs:WordSearchData",
    "xnli": "jaxlm.data.tasks.text_pairs:XNLIData",
    "zebra": "jaxlm.data.tasks.zebra:ZebraData",
  },
)

__all__ = ["DATA", "DataError"]
