"""Text to integers and back, chosen by `tokenizer.kind`.

A tokenizer config is a frozen dataclass with `vocab_size` and
`load(train_documents, content, folder) -> Tokenizer`.
"""

from typing import TYPE_CHECKING

from jaxlm import lazy
from jaxlm.config import Kinds
from jaxlm.data.tokenizers.base import Tokenizer

if TYPE_CHECKING:
  from jaxlm.data.tokenizers.bpe import (
    BPEFileConfig as BPEFileConfig,
  )
  from jaxlm.data.tokenizers.bpe import (
    TrainedBPEConfig as TrainedBPEConfig,
  )
  from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig as ByteTokenizerConfig
  from jaxlm.data.tokenizers.chars import CharTokenizerConfig as CharTokenizerConfig

TOKENIZERS = Kinds(
  "tokenizer",
  {
    "bytes": "jaxlm.data.tokenizers.bytes:ByteTokenizerConfig",
    "bpe": "jaxlm.data.tokenizers.bpe:BPEFileConfig",
    "trained_bpe": "jaxlm.data.tokenizers.bpe:TrainedBPEConfig",
    "chars": "jaxlm.data.tokenizers.chars:CharTokenizerConfig",
  },
)

_NAMES = lazy.by_name(
  {
    "jaxlm.data.tokenizers.bpe": "BPEFileConfig TrainedBPEConfig",
    "jaxlm.data.tokenizers.bytes": "ByteTokenizerConfig",
    "jaxlm.data.tokenizers.chars": "CharTokenizerConfig",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = ["TOKENIZERS", "Tokenizer", *_NAMES]
