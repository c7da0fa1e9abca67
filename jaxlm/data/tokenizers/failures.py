"""What the tokenizers library raises where a file lets it load and not encode: a bare Exception
with a sentence.
"""

import contextlib

from jaxlm.data.errors import DataError


@contextlib.contextmanager
def answered(what: str):
  """DataError in place of the library's own. what: the tokenizer, for people."""
  try:
    yield
  except Exception as error:
    if type(error) is not Exception:
      raise
    raise DataError(
      f"{what} cannot encode a text: {(str(error).splitlines() or ['no reason given'])[0][:200]}; its file is damaged or "
      f"lacks a token that stands for unknown ones; take another copy"
    ) from None
