"""Algorithms of decoding over one exact engine: a file each.

  step.py         a forward pass of a batch, or row by row; rows in and out of a state
  unrolled.py     decoders without a loop over layers, for loops over tokens
  continuous.py   a scheduler that refills finished rows
  beam.py         beam search
  drafted.py      what engines with a draft model share
  speculative.py  chains of draft tokens, ragged batches
  same_length.py  the same, in groups of rows of equal length
  trees.py        draft trees and their recursive rejection
  rsd.py          trees by sampling without replacement
  dyspec.py       trees by a heap of expected acceptance
  constraints.py  what text is allowed: state machines behind one contract
  constrained.py  rejection sampling with weights and particles, or masks
  set_prompts.py  prompts with parts in no order
  blocks.py       block diffusion; block_policy.py chooses lengths, guidance.py moves logits
  elastic.py      masked diffusion that computes keys and values again where they drift
  cyclic_reflex.py  offsets on the logits of some tokens, by the number of the token

docs/decoding.md says which serves what.
"""
