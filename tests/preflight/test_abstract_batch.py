"""Shapes that preflight compiles for are those of the batches that training reads."""

import pytest

from jaxlm.data.passages import PassageData
from jaxlm.data.scenes import SceneData
from jaxlm.data.tasks.star_graphs import StarGraphData
from jaxlm.data.text import TextData
from jaxlm.preflight.compile import abstract_batch


class Run:
  def __init__(self, data):
    self.data = data


CASES = {
  "text": TextData("mini:moby_dick", seq_len=16, batch_size=3),
  "seeded": TextData(
    "mini:moby_dick", seq_len=16, batch_size=3, sequence_seeds=True, packing="packed"
  ),
  **{
    form: PassageData("mini:moby_dick", seq_len=200, batch_size=2, unit="sentence", form=form)
    for form in ("insertion", "insertion_transformer", "causal", "masked_diffusion")
  },
  "star_graphs": StarGraphData(batch_size=2, sequence_seeds=True),
  "scenes": SceneData(batch_size=2, size=8),
}


@pytest.mark.parametrize("name", CASES)
def test_declared_fields_are_those_of_a_real_batch(name):
  data = CASES[name]
  batch = next(iter(data.build("train", seed=0)))
  want = {key: (value.shape, value.dtype) for key, value in batch.items()}
  assert {
    key: (value.shape, value.dtype) for key, value in abstract_batch(Run(data)).items()
  } == want


def test_a_corpus_that_is_not_there_has_shapes_too():
  assert abstract_batch(Run(TextData("text:nowhere/*.txt", seq_len=8, batch_size=2)))[
    "tokens"
  ].shape == (2, 8)
