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

from typing import TYPE_CHECKING

from jaxlm import lazy
from jaxlm.config import Kinds
from jaxlm.data.errors import DataError

if TYPE_CHECKING:
  from jaxlm.data.base import DataConfig as DataConfig
  from jaxlm.data.corrupted_text import SpanCorruptionData as SpanCorruptionData
  from jaxlm.data.mixture import MixtureData as MixtureData
  from jaxlm.data.passages import PassageData as PassageData
  from jaxlm.data.sources import Corpus as Corpus
  from jaxlm.data.sources import open_corpus as open_corpus
  from jaxlm.data.text import TextData as TextData

DATA = Kinds(
  "data",
  {
    "backcopy": "jaxlm.data.backcopy:BackcopyData",
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
    "recall": "jaxlm.data.planted:RecallData",
    "repeated_words": "jaxlm.data.needles:RepeatedWordsData",
    "roles": "jaxlm.data.roles:RolesData",
    "scenes": "jaxlm.data.scenes:SceneData",
    "span_corruption": "jaxlm.data.corrupted_text:SpanCorruptionData",
    "spelling": "jaxlm.data.tasks.text_pairs:SpellingData",
    "styles": "jaxlm.data.planted:StylesData",
    "text": "jaxlm.data.text:TextData",
    "tydiqa": "jaxlm.data.tasks.text_pairs:TyDiQAData",
    "word_search": "jaxlm.data.tasks.text_pairs:WordSearchData",
    "xnli": "jaxlm.data.tasks.text_pairs:XNLIData",
    "zebra": "jaxlm.data.tasks.zebra:ZebraData",
  },
)

_NAMES = lazy.by_name(
  {
    "jaxlm.data.base": "DataConfig",
    "jaxlm.data.mixture": "MixtureData",
    "jaxlm.data.passages": "PassageData",
    "jaxlm.data.sources": "Corpus open_corpus",
    "jaxlm.data.text": "TextData",
    "jaxlm.data.corrupted_text": "SpanCorruptionData",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = ["DATA", "DataError", *_NAMES]
