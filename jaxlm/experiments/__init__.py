"""Tables as code: rows, columns, the paper's numbers beside ours, resumable runs."""

from jaxlm.experiments.table import (
  Column,
  Figure,
  Measured,
  Missing,
  Number,
  Row,
  Scale,
  Table,
  Trained,
  by_step,
  from_memory,
  paper,
)

__all__ = [
  "Column",
  "Figure",
  "Measured",
  "Missing",
  "Number",
  "Row",
  "Scale",
  "Table",
  "Trained",
  "by_step",
  "from_memory",
  "paper",
]
