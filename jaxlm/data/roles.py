"""A planted corpus of roles and markers: who a marker stands for, in several registers, with a bias of
known strength per role (a miniature of arXiv 2509.08146 with no people in it).

Role o goes with marker "ze" with probability (1 + b_o) / 2, else with "xo". Axes: T time, O roles.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.made_rows import MadeRows, text_row
from jaxlm.ranges import Count, Fraction

# Ids: padding of prompts, <s>, the registers, "refers to", the answer's mark, the instruction, markers.
PAD, START, NARRATIVE, CLOZE, QUESTION, REFERS, ANSWER, FAIR, ZE, XO = range(10)
FIRST_ROLE = 10
REGISTERS = {"cloze": (CLOZE, REFERS), "question": (QUESTION, ANSWER)}


@dataclasses.dataclass(frozen=True)
@checked
class RolesData(MadeRows):
  """Rows of one register each: narrative (role, marker), or items of two roles and a marker with the
  role that it stands for, as a cloze or as a question. Earlier items of a row are examples to later ones.

  strength: b_o are evenly spaced in [-strength, strength]. stated: share of items that state the
  markers of both roles, so that the answer is certain. fair: share of rows that begin with the fair
  instruction; balanced: whether what follows it is without bias. rows: of one pass of validation.
  """

  name: ClassVar[str] = "roles"

  batch_size: Count
  seq_len: Count = 72
  num_roles: Count = 40
  strength: Fraction = 0.9
  stated: Fraction = 0.2
  fair: Fraction = 0.1
  balanced: bool = False
  rows: Count = 128

  def __post_init__(self):
    if self.num_roles < 3:
      raise ConfigError(f"data.num_roles = {self.num_roles}: a correlation over roles needs three")
    if self.seq_len < 10:
      raise ConfigError(f"data.seq_len = {self.seq_len}: one item takes ten tokens")

  @property
  def vocab_size(self) -> int:
    return FIRST_ROLE + self.num_roles

  @property
  def bias_O(self) -> np.ndarray:
    """b_o, rising with o."""
    return np.linspace(-self.strength, self.strength, self.num_roles)

  def marker(self, role: int, bias_O, rng) -> int:
    return ZE if rng.random() < (1 + bias_O[role]) / 2 else XO

  def item(self, register: str, rng, bias_O, stated: bool, composition: str = "") -> list[int]:
    """Tokens of one item; the last one is the answer.

    composition: "pro" and "anti" choose a role whose bias agrees with the marker or not, "neutral"
    states the markers.
    """
    begin, ask = REGISTERS[register]
    pair = rng.choice(self.num_roles, 2, replace=False)
    answer = int(pair[rng.integers(2)])
    mark = self.marker(answer, bias_O, rng)
    agrees = (self.bias_O[answer] > 0) == (mark == ZE)
    if composition in ("pro", "anti") and agrees != (composition == "pro"):
      mark = ZE + XO - mark
    first, second = FIRST_ROLE + pair
    if stated or composition == "neutral":
      other = ZE + XO - mark
      marks = (mark, other) if pair[0] == answer else (other, mark)
      return [begin, first, marks[0], second, marks[1], ask, mark, FIRST_ROLE + answer]
    return [begin, first, second, mark, ask, FIRST_ROLE + answer]

  def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(T + 1 tokens, T weights): markers of narrative and answers count."""
    register = ("narrative", "cloze", "question")[rng.integers(3)]
    fair = rng.random() < self.fair
    bias_O = np.zeros(self.num_roles) if fair and self.balanced else self.bias_O
    text, at = [START] + [FAIR] * fair, []
    while len(text) <= self.seq_len:
      if register == "narrative":
        role = int(rng.integers(self.num_roles))
        text += [NARRATIVE, FIRST_ROLE + role, self.marker(role, bias_O, rng)]
      else:
        text += self.item(register, rng, bias_O, bool(rng.random() < self.stated))
      at.append(len(text) - 2)
    weight = np.zeros(self.seq_len, np.float32)
    weight[[i for i in at if i < self.seq_len]] = 1.0
    return np.array(text[: self.seq_len + 1], np.int32), weight

  def row_maker(self):
    def make(rng):
      text, weight = self.draw(rng)
      return text_row(text) | {"loss_weights": weight}

    return make
