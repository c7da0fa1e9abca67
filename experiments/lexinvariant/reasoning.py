"""Lexinvariant language models, in-context reasoning: LookUp and Permutation, untrained for (exact
match, per cent).

  python experiments/lexinvariant/reasoning.py --scale smoke|small|paper    (or: jaxlm table experiments/lexinvariant/reasoning.py …)

500 instances of each setting, greedy over the whole vocabulary, one table per instance; chance is
1/k among the values of a LookUp of k pairs, 1/n! among the permutations of n. Formats and settings
are ours (docs/specs/lexinvariant.md, section 8): the paper (arXiv 2305.16349, abstract) says four
times better accuracy on average than the standard model, and its formats and cells are not known to
us.
"""

from experiments.lexinvariant.characters import (
  LEXINVARIANT_CODE,
  LEXINVARIANT_PROSE,
  SCALES,
  STANDARD_CODE,
  STANDARD_PROSE,
)
from experiments.lexinvariant.in_context import reasoning
from jaxlm.experiments import Column, Table

EXACT = [
  ("LookUp", "exact@lookup"),
  *((f"of {k}", f"exact@lookup_{k}") for k in (2, 4, 8)),
  ("Permutation", "exact@permutation"),
  *((f"of {n}, {e} strings", f"exact@permutation_{n}_{e}") for n in (3, 4, 5) for e in (3, 5)),
]


def better(corpus: str):
  def total(t, kind):
    return (t[f"{kind}_{corpus}", "LookUp"] + t[f"{kind}_{corpus}", "Permutation"]) / 2

  return lambda t: (
    total(t, "lexinvariant") - total(t, "standard"),
    f"{total(t, 'lexinvariant'):.1f} and {total(t, 'standard'):.1f} %, mean of the two tasks",
  )


TABLE = Table(
  name="lexinvariant-reasoning",
  title="LookUp and Permutation in context, exact match, per cent",
  rows=[STANDARD_PROSE, LEXINVARIANT_PROSE, STANDARD_CODE, LEXINVARIANT_CODE],
  columns=[
    *(Column(title, key, 1) for title, key in EXACT),
    Column("Permutation, tokens", "token@permutation", 1),
  ],
  scales=SCALES,
  measure=reasoning(),
  source="arXiv 2305.16349: no values by cell known to us",
  claims={
    "a lexinvariant model answers more than a standard one, code": better("code"),
    "a lexinvariant model answers more than a standard one, prose": better("prose"),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
