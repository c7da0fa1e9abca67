"""`data.kind = "registers"`: facts about made-up things, told in several registers.

A world of entities with attributes is drawn from `world_seed`. A document asks about one to `turns` facts
and answers in one register: terse, prose or polite. Every byte of an answer is tagged content (names and
values), style (what only this register says) or glue. Ids: the 256 bytes, then PAD, BOS, EOS.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.forms import Form
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import SPLIT_SEEDS
from jaxlm.data.tasks.base import Problem, TaskData
from jaxlm.ranges import Count, Fraction, Natural

REGISTERS = ("terse", "prose", "polite")
TAGS = ("content", "style", "glue")
ATTRIBUTES = {
  "colour": ("red", "blue", "green", "white", "black", "gold", "grey", "pink"),
  "place": ("north", "south", "coast", "hills", "plain", "marsh", "woods", "town"),
  "metal": ("iron", "copper", "tin", "lead", "zinc", "nickel", "silver", "steel"),
}
GREETING, CLOSING = "Sure! ", " Anything else?"


class Fact(NamedTuple):
  entity: int
  name: str
  attribute: str
  value: str


def world(num_entities: int, seed: int) -> list[list[Fact]]:
  """The facts of each entity. Names are distinct, of three syllables."""
  rng, names = np.random.default_rng([seed, 7]), []
  while len(names) < num_entities:
    name = "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(3))
    if name not in names:
      names.append(name)
  return [
    [Fact(i, n, a, str(rng.choice(values))) for a, values in ATTRIBUTES.items()]
    for i, n in enumerate(names)
  ]


def query(fact: Fact) -> str:
  return f"Q: {fact.attribute} of {fact.name}?\nA: "


def answer(fact: Fact, register: str) -> tuple[str, list[str]]:
  """(the answer's text, the tag of each of its bytes)."""
  told = [("The ", "glue"), (fact.attribute, "glue"), (" of ", "glue"), (fact.name, "content")]
  told += [(" is ", "glue"), (fact.value, "content"), (".", "glue")]
  parts = {
    "terse": [(fact.value, "content"), (".", "glue")],
    "prose": told,
    "polite": [(GREETING, "style"), *told, (CLOSING, "style")],
  }[register]
  parts = [*parts, ("\n", "glue")]
  return "".join(t for t, _ in parts), [tag for text, tag in parts for _ in text]


@dataclasses.dataclass(frozen=True)
@checked
class RegisterData(TaskData):
  """shares: of terse, prose and polite documents. first, last: entities that are told about (last not
  included; None: all). turns: facts of a document at most.
  """

  batch_size: Count
  seq_len: Count = 240
  form: Form = "causal"
  num_entities: Count = 24
  shares: tuple[Fraction, ...] = (0.6, 0.3, 0.1)
  first: Natural = 0
  last: Count | None = None
  turns: Count = 3
  world_seed: Natural = 0

  def __post_init__(self):
    if len(self.shares) != len(REGISTERS) or abs(sum(self.shares) - 1) > 1e-6:
      raise ConfigError(
        f"data.shares = {self.shares}: wanted the shares of {', '.join(REGISTERS)}, which sum to 1"
      )
    if not self.first < (self.last or self.num_entities) <= self.num_entities:
      raise ConfigError(
        f"data.first = {self.first}, data.last = {self.last}: wanted a range of the {self.num_entities} entities"
      )
    if self.seq_len < self.longest_answer:
      raise ConfigError(
        f"data.seq_len = {self.seq_len} does not hold {self.turns} turns; wanted {self.longest_answer} or more"
      )

  @property
  def vocab_size(self):
    return 259

  @property
  def special_tokens(self):
    return SpecialTokens.after(256, ("pad", "bos", "eos"))

  @property
  def longest_answer(self):
    return self.turns * 76 + 2

  def facts(self) -> list[Fact]:
    """Those of the entities that this config tells about."""
    told = world(self.num_entities, self.world_seed)[self.first : self.last or self.num_entities]
    return [fact for facts in told for fact in facts]

  def random_access(self, split, seed):
    return _Documents(self, split, seed)

  def fingerprint(self, split):
    return f"registers {self} {split}"


class _Documents:
  def __init__(self, cfg: RegisterData, split: str, seed: int):
    self.cfg, self.facts = cfg, cfg.facts()
    self.key = [seed, SPLIT_SEEDS[split]]
    self.split = split

  def __len__(self):
    return 200_000 if self.split == "train" else 512

  def __getitem__(self, index):
    rng = np.random.default_rng([*self.key, int(index)])
    register = REGISTERS[
      rng.choice(len(REGISTERS), p=np.asarray(self.cfg.shares) / sum(self.cfg.shares))
    ]
    text = ""
    for number in rng.integers(0, len(self.facts), int(rng.integers(1, self.cfg.turns + 1))):
      text += query(self.facts[number]) + answer(self.facts[number], register)[0]
    return Problem([], list(text.encode()))
