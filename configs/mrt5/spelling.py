"""Character tasks: a misspelt word in a phrase is put right, or a hidden word found by its
definition.

  jaxlm data prepare spelling definitions
  jaxlm train --config=configs/mrt5/spelling.py --workdir=runs/spelling
  jaxlm train --config=configs/mrt5/spelling.py:word_search --workdir=runs/search

Stand-ins made from nlpaug's misspellings in the embedded novels, and from WordNet; the paper
fine-tunes on the suite of Huang et al. (2023) from its continued-pretraining checkpoints
(train.init_from).
"""

import ml_collections as mlc


def get_config(task: str = "spelling") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(
    kind="encoder_decoder",
    d_model=128,
    d_ff=256,
    num_heads=4,
    d_kv=32,
    num_encoder_layers=4,
    num_decoder_layers=2,
    softmax1=True,
    reduction=dict(kind="delete_gate", layer=2),
    unroll=2,
  )
  target = {"spelling": 0.5, "word_search": 0.7}[task]
  c.objective = dict(
    kind="sequence_to_sequence", delay=1000, controller=dict(target=target, k_p=0.5, k_i=1e-3)
  )
  if task == "spelling":
    c.data = dict(
      kind="spelling",
      misspellings="prepared:spelling",
      contexts="mini:en",
      batch_size=32,
      seq_len=64,
      target_len=64,
    )
  else:
    c.data = dict(
      kind="word_search",
      definitions="prepared:definitions",
      batch_size=32,
      seq_len=128,
      target_len=16,
    )
  c.optimizer = dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=1.0
  )
  c.schedule = dict(kind="cosine", warmup_steps=100, final_fraction=0.1)
  c.mesh = dict(data=1, fsdp=-1, sequence=1, tensor=1)
  c.train = dict(steps=4000, log_every=50, save_every=1000)
  c.eval = dict(every=1000, num_tokens=32_768)
  return c.lock()
