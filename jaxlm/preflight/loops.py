"""How often each computation runs: trip counts of while loops, from start value, increment and
bound.

TPU programs carry no `known_trip_count`. The bound may be a constant that the compiler moved into
the loop's carry, and windowed loops are unrolled by two, so the increment is read from the body
too.
"""

import dataclasses
import math
from collections.abc import Iterator

from jaxlm.preflight.hlo import Computation, Instruction, Module

_PASS = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "opt-barrier"}


@dataclasses.dataclass(frozen=True)
class Affine:
  """scale * i + offset, where i is tuple element `index` of a loop's carry (None: a constant)."""

  offset: int
  scale: int = 0
  index: int | None = None


@dataclasses.dataclass(frozen=True)
class Site:
  """An instruction, its computation, how often it runs, and whether that count is certain."""

  instruction: Instruction
  computation: Computation
  count: int
  depth: int  # loops around it
  inside: tuple[str, ...]  # instructions whose called computation holds it: loops, calls, fusions


class Loops:
  """Trip counts of one module. `unknown` lists while instructions whose count could not be read."""

  def __init__(self, module: Module):
    self.module = module
    self.caller: dict[str, tuple[Computation, Instruction]] = {}
    for computation in module.computations.values():
      for instruction in computation.instructions.values():
        for name in instruction.called:
          self.caller[name] = (computation, instruction)
    self.trips: dict[str, int] = {}
    self.unknown: list[str] = []
    for computation in module.computations.values():
      for instruction in computation.instructions.values():
        if instruction.opcode == "while":
          trips = self._trips(computation, instruction)
          if trips is None:
            self.unknown.append(instruction.name)
          self.trips[instruction.name] = 1 if trips is None else trips

  def sites(self, *, fused: bool = False) -> Iterator[Site]:
    """Every instruction that runs, from the entry down. fused: also those inside fusions."""
    yield from self._walk(self.module.entry, 1, 0, (), fused)

  def _walk(self, computation, count, depth, inside, fused):
    for instruction in computation.instructions.values():
      yield Site(instruction, computation, count, depth, inside)
      within = (*inside, instruction.name)
      if instruction.opcode == "while":
        body = self.module.computations[instruction.calls("body")]
        yield from self._walk(body, count * self.trips[instruction.name], depth + 1, within, fused)
      elif instruction.opcode == "fusion":
        if fused:
          yield from self._walk(
            self.module.computations[instruction.calls("calls")], count, depth, within, fused
          )
      elif (
        instruction.opcode in ("call", "conditional", "async-start", "custom-call")
        or "-start" in instruction.opcode
      ):
        # A conditional's branches are all counted: an upper bound, and rare in a train step.
        for name in instruction.called:
          if (
            name in self.module.computations
            and instruction.calls("to_apply") != name
            or instruction.opcode == "call"
          ):
            yield from self._walk(self.module.computations[name], count, depth, within, fused)

  # -- reading one loop
  # ------------------------------------------------------------------------------------------

  def _trips(self, computation: Computation, loop: Instruction) -> int | None:
    condition = self.module.computations[loop.calls("condition")]
    body = self.module.computations[loop.calls("body")]
    compare, where = self._through_fusion(condition.root, condition)
    if compare is None or compare.opcode != "compare" or len(compare.operands) != 2:
      return None
    left, right = (self._affine(name, *where) for name in compare.operands)
    if left is None or right is None:
      return None
    direction = compare.attribute("direction")
    left, right = (self._invariant(side, computation, loop, body) for side in (left, right))
    if left.index is None and right.index is not None:  # n > i  is  i < n
      left, right = right, left
      direction = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(direction, direction)
    if left.index is None or right.index is not None:
      return None
    start = self._initial(computation, loop, left.index)
    after = self._next(body, left.index)
    if (
      start is None
      or after is None
      or after.index != left.index
      or after.scale != 1
      or after.offset == 0
    ):
      return None
    first, step, bound = left.scale * start + left.offset, left.scale * after.offset, right.offset
    if direction == "NE":
      return max((bound - first) // step, 0)
    if direction in ("LE", "GE"):
      bound += 1 if direction == "LE" else -1
    if (direction in ("LT", "LE")) != (step > 0):
      return None
    return max(math.ceil((bound - first) / step), 0)

  def _invariant(self, side: Affine, computation, loop, body) -> Affine:
    """A carry element that the body hands on unchanged is a constant: its initial value."""
    if side.index is not None and self._next(body, side.index) == Affine(0, 1, side.index):
      start = self._initial(computation, loop, side.index)
      if start is not None:
        return Affine(side.scale * start + side.offset)
    return side

  def _next(self, body: Computation, index: int) -> Affine | None:
    root = body.root
    while root.opcode in ("opt-barrier", "copy") and root.operands:
      root = body.instructions[root.operands[0]]
    if root.opcode != "tuple" or index >= len(root.operands):
      return None
    return self._affine(root.operands[index], body, ())

  def _initial(self, computation: Computation, loop: Instruction, index: int) -> int | None:
    source = computation.instructions.get(loop.operands[0])
    while source is not None and source.opcode in ("opt-barrier", "copy") and source.operands:
      source = computation.instructions.get(source.operands[0])
    if source is None or source.opcode != "tuple":
      return None
    value = self._affine(source.operands[index], computation, ())
    return self._constant(value, computation)

  def _constant(self, value: Affine | None, computation: Computation) -> int | None:
    """A number, following unchanged carries of the loops outside."""
    while value is not None and value.index is not None:
      if computation.name not in self.caller:
        return None
      outer, loop = self.caller[computation.name]
      if loop.opcode != "while":
        return None
      body = self.module.computations[loop.calls("body")]
      fixed = self._invariant(value, outer, loop, body)
      return fixed.offset if fixed.index is None else None
    return None if value is None else value.offset

  def _through_fusion(self, instruction, computation):
    """(the instruction that computes, (computation, actual operands)) behind copies and fusions."""
    where = (computation, ())
    for _ in range(8):
      if instruction.opcode == "fusion":
        inner = self.module.computations[instruction.calls("calls")]
        where = (inner, ((instruction, *where),))
        instruction = inner.root
      elif instruction.opcode in _PASS and instruction.operands:
        instruction = where[0].instructions[instruction.operands[0]]
      else:
        return instruction, where
    return None, where

  def _affine(self, name: str, computation: Computation, stack) -> Affine | None:
    """The value of a scalar integer instruction. stack: the fusions entered, for their parameters."""
    instruction = computation.instructions.get(name)
    if instruction is None:
      return None

    def go(operand):
      return self._affine(operand, computation, stack)

    match instruction.opcode:
      case "constant":
        try:
          return Affine(int(instruction.literal))
        except ValueError:
          return None
      case "parameter":
        if stack:
          fusion, outer, outer_stack = stack[-1]
          return self._affine(fusion.operands[int(instruction.literal)], outer, outer_stack)
        return None
      case "get-tuple-element":
        source = computation.instructions.get(instruction.operands[0])
        if source is not None and source.opcode == "parameter" and not stack:
          return Affine(0, 1, int(instruction.attribute("index")))
        if source is not None and source.opcode == "tuple":
          return go(source.operands[int(instruction.attribute("index"))])
        if source is not None and source.opcode == "fusion":
          inner = self.module.computations[source.calls("calls")]
          if inner.root.opcode == "tuple":
            return self._affine(
              inner.root.operands[int(instruction.attribute("index"))],
              inner,
              (*stack, (source, computation, stack)),
            )
        return None
      case "fusion":
        inner = self.module.computations[instruction.calls("calls")]
        return self._affine(inner.root.name, inner, (*stack, (instruction, computation, stack)))
      case "add" | "subtract" | "multiply":
        left, right = go(instruction.operands[0]), go(instruction.operands[1])
        return None if left is None or right is None else _combine(instruction.opcode, left, right)
      case opcode if opcode in _PASS:
        return go(instruction.operands[0])
    return None


def _combine(opcode: str, a: Affine, b: Affine) -> Affine | None:
  if opcode == "multiply":
    if a.index is not None and b.index is not None:
      return None
    a, b = (a, b) if b.index is None else (b, a)
    return Affine(a.offset * b.offset, a.scale * b.offset, a.index)
  if a.index is not None and b.index is not None and a.index != b.index:
    return None
  sign = 1 if opcode == "add" else -1
  index = a.index if a.index is not None else b.index
  scale = a.scale + sign * b.scale
  return Affine(a.offset + sign * b.offset, scale, index if scale else None)
