"""Reading optimised HLO text: computations, instructions, shapes. No judgement about cost here.

The text is the only complete account of a program compiled for a chip that is not there. What this
reader knows of its grammar: shapes with TPU layouts (`bf16[8,128]{1,0:T(8,128)(2,1)S(1)}`, S(1) =
on-chip memory), tuple shapes with `/*index=5*/` comments, attributes that run over several lines
(Pallas calls), computations that end with an execution thread, and the tables of file names and
stack frames in front.
"""

import dataclasses
import math
import re

DTYPE_BITS = {
  "pred": 8,
  "s4": 4,
  "u4": 4,
  "s8": 8,
  "u8": 8,
  "s16": 16,
  "u16": 16,
  "s32": 32,
  "u32": 32,
  "s64": 64,
  "u64": 64,
  "bf16": 16,
  "f16": 16,
  "f32": 32,
  "f64": 64,
  "c64": 64,
  "c128": 128,
  "f8e4m3fn": 8,
  "f8e5m2": 8,
  "f8e4m3b11fnuz": 8,
  "token": 0,
}

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([^\]]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
_END = re.compile(r"^\}(, execution_thread=.*)?\s*$")  # not the braces of a Pallas call's own lines
_CALLS = re.compile(
  r"(calls|condition|body|to_apply|called_computation|branch_computations|called_computations|"
  r"true_computation|false_computation|async_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result. `on_chip`: in VMEM, SMEM or a semaphore, not in HBM."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool = False

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    return -(-self.size * DTYPE_BITS.get(self.dtype, 32) // 8)


@dataclasses.dataclass
class Instruction:
  name: str
  opcode: str
  arrays: tuple[Array, ...]  # the result; several for a tuple
  operands: tuple[str, ...]  # names in the same computation
  attributes: str  # everything behind the operands, verbatim
  literal: str = ""  # text between the parentheses, for constants and parameters
  root: bool = False

  @property
  def called(self) -> list[str]:
    names = []
    for _, value in _CALLS.findall(self.attributes):
      names += [n.strip().lstrip("%") for n in value.strip("{}").split(",") if n.strip()]
    return names

  def calls(self, role: str) -> str | None:
    match = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
    return match and match.group(1)

  def attribute(self, key: str) -> str | None:
    """The value of key={...} or key=word, without braces."""
    match = re.search(rf"\b{key}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
    return match and match.group(1).strip("{}")

  def integers(self, key: str) -> tuple[int, ...]:
    value = self.attribute(key)
    return tuple(int(v) for v in value.split(",")) if value else ()

  @property
  def cycles(self) -> int:
    """The compiler's own estimate for this instruction, 0 where it gives none."""
    match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
    cycles = int(match.group(1)) if match else 0
    return cycles if cycles < 2**62 else 0  # the largest integer stands for "unknown"

  @property
  def op_name(self) -> str:
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match.group(1) if match else ""

  @property
  def channel(self) -> str | None:
    match = re.search(r"\bchannel_id=(\d+)", self.attributes)
    return match and match.group(1)


@dataclasses.dataclass
class Computation:
  name: str
  entry: bool
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(
      (i for i in self.instructions.values() if i.root), list(self.instructions.values())[-1]
    )

  @property
  def parameters(self) -> dict[int, Instruction]:
    return {int(i.literal): i for i in self.instructions.values() if i.opcode == "parameter"}


@dataclasses.dataclass
class Module:
  computations: dict[str, Computation]
  sources: dict[str, str]  # stack frame id -> "file:line"

  @property
  def entry(self) -> Computation:
    return next(c for c in self.computations.values() if c.entry)

  def source(self, instruction: Instruction) -> str:
    """file:line of the innermost frame, '' where the compiler kept none."""
    match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
    if match:
      return self.sources.get(match.group(1), "")
    match = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
    return f"{match.group(1)}:{match.group(2)}" if match else ""


def parse_arrays(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape's text, tuples flattened."""
  arrays = []
  for dtype, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
    if dtype in DTYPE_BITS:
      sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
      memory = re.search(r"S\((\d+)\)", layout or "")
      arrays.append(
        Array(dtype, sizes, bool(memory) and memory.group(1) not in ("0", "5"))
      )  # 5: host memory
  return tuple(arrays)


def parse(text: str) -> Module:
  """The module of `compiled.as_text()`. Raises ValueError when there is no entry computation."""
  computations, current = {}, None
  pending: list[str] = []

  def flush():
    if pending and current is not None:
      instruction = _instruction("\n".join(pending))
      if instruction:
        current.instructions[instruction.name] = instruction
    pending.clear()

  for line in text.splitlines():
    head = _HEAD.match(line) if not line.startswith(" ") else None
    if head:
      flush()
      current = Computation(head.group(2), bool(head.group(1)), {})
      computations[current.name] = current
    elif current is not None and _END.match(line):
      flush()
      current = None
    elif current is not None:
      if re.match(r"^\s+(ROOT )?%?[\w.\-]+ = ", line):
        flush()
      pending.append(line)
  if not any(c.entry for c in computations.values()):
    raise ValueError("no ENTRY computation: this is not the text of a compiled program")
  return Module(computations, _sources(text))


def _instruction(text: str) -> Instruction | None:
  match = re.match(r"^\s+(ROOT )?%?([\w.\-]+) = ", text)
  if not match:
    return None
  rest = text[match.end() :]
  shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else _array_end(rest)
  shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
  open_at = rest.find("(")
  close_at = _closing(rest, open_at)
  inner = rest[open_at + 1 : close_at]
  return Instruction(
    name=match.group(2),
    opcode=rest[:open_at].strip(),
    arrays=parse_arrays(shape),
    operands=tuple(re.findall(r"%([\w.\-]+)", inner)),
    attributes=rest[close_at + 1 :],
    literal=inner.strip(),
    root=bool(match.group(1)),
  )


def _array_end(text: str) -> int:
  """End of one array shape: the first blank outside braces."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == "{") - (c == "}")
    if c == " " and depth == 0:
      return i
  return len(text)


def _closing(text: str, start: int) -> int:
  depth, quoted = 0, False
  for i in range(start, len(text)):
    c = text[i]
    if c == '"' and text[i - 1] != "\\":
      quoted = not quoted
    if not quoted:
      depth += (c == "(") - (c == ")")
      if depth == 0 and c == ")":
        return i
  return len(text) - 1


def _sources(text: str) -> dict[str, str]:
  files = dict(re.findall(r'^(\d+) "([^"]*)"$', _table(text, "FileNames"), re.M))
  places = {
    i: f"{files.get(f, '?')}:{line}"
    for i, f, line in re.findall(
      r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)", _table(text, "FileLocations"), re.M
    )
  }
  return {
    i: places.get(p, "")
    for i, p in re.findall(r"^(\d+) \{file_location_id=(\d+)", _table(text, "StackFrames"), re.M)
  }


def _table(text: str, title: str) -> str:
  match = re.search(rf"^{title}\n(.*?)\n\n", text, re.M | re.S)
  return match.group(1) if match else ""
