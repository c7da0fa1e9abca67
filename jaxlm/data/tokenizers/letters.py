"""A tokenizer for documents, in which the letters of a special token are letters.

`encode_special_tokens` keeps the library from looking for special tokens in a text. A model that
knows whole pieces (Unigram, WordLevel, WordPiece) finds them all the same, for they are in its
vocabulary: there they get a name that no text has.
"""

import json

import tokenizers as hf

from jaxlm import json_text

NO_TEXT = "\ufdd0"  # a code point that is no character


def for_documents(tokenizer: hf.Tokenizer) -> hf.Tokenizer:
  """The tokenizer, its ids as they were; the unknown token keeps its name, for the model asks for
  it.
  """
  tokenizer.encode_special_tokens = True
  described = json.loads(tokenizer.to_str())
  model = described["model"]
  if model["type"] == "BPE" and not model.get("ignore_merges"):
    return tokenizer
  special = {t["content"] for t in described["added_tokens"] if t["special"]} - {
    model.get("unk_token")
  }
  vocabulary = model["vocab"]
  if isinstance(vocabulary, dict):
    hidden = special & vocabulary.keys()
    model["vocab"] = {_named(token, hidden): i for token, i in vocabulary.items()}
  else:
    hidden = special & {token for i, (token, _) in enumerate(vocabulary) if i != model["unk_id"]}
    model["vocab"] = [(_named(token, hidden), score) for token, score in vocabulary]
  if not hidden:
    return tokenizer
  # Without their entries, for the library would give these names new ids. The others' ids follow
  # the vocabulary's.
  described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] not in hidden]
  described["post_processor"] = None
  out = hf.Tokenizer.from_str(json_text.dumps(described))
  out.encode_special_tokens = True
  return out


def _named(token: str, hidden: set[str]) -> str:
  return NO_TEXT + token if token in hidden else token
