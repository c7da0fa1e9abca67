"""The tokens of a vocabulary that stand for no text and no node. The data own them; objectives,
engines and measures ask for them by name.
"""

import dataclasses

from jaxlm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids; None: this vocabulary has no such token.

  pad: fills a row. bos: ends what is given and begins the answer. eos: ends a sequence. cls: in
  front of a sequence to insert into. mask: a token that is to be predicted. unk: a word that the
  vocabulary lacks.
  """

  pad: int | None = None
  bos: int | None = None
  eos: int | None = None
  cls: int | None = None
  mask: int | None = None
  unk: int | None = None

  @classmethod
  def after(cls, vocab_size: int, names: tuple[str, ...]) -> "SpecialTokens":
    """The next ids in the order of `names`; a name of none of the fields takes up an id too."""
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: vocab_size + i for i, name in enumerate(names) if name in known})

  def require(self, names: tuple[str, ...], who: str) -> None:
    """ConfigError unless there is a token of each name. who: the subject of the sentence."""
    missing = [name for name in names if getattr(self, name) is None]
    if missing:
      raise ConfigError(f"{who} needs a {missing[0]} token, and these data have none")
