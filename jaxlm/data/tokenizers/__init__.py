"""Text to integers and back, chosen by `tokenizer.kind`.

A tokenizer config is a frozen dataclass with `vocab_size` and
`load(train_documents, content, folder) -> Tokenizer`.
"""

from jaxlm.config import Kinds
from jaxlm.data.tokenizers.base import Tokenizer

TOKENIZERS = Kinds(
  "tokenizer",
  {
    "bytes": "jaxlm.data.tokenizers.bytes:ByteTokenizerConfig",
    "bpe": "jaxlm.data.tokenizers.bpe:BPEFileConfig",
    "trained_bpe": "jaxlm.data.tokenizers.bpe:TrainedBPEConfig",
    "chars": "jaxlm.data.tokenizers.chars:CharTokenizerConfig",
  },
)

__all__ = ["TOKENIZERS", "Tokenizer"]
