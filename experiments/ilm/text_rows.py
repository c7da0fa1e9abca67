"""The rows, judges and scales that tables 2 and 3 share: one training serves both."""

import os
from collections.abc import Callable

from experiments.ilm.texts import trained_beside
from jaxlm.experiments import Row, Scale

CONFIG = "configs/ilm/text.py"
RUNS = "ilm-text"  # work folder: runs/ilm-text/<scale>


def recipe(form: str):
  """Overrides of a row at paper scale that differ from its form's: ARM trains 80k steps on Stories,
  ILM and MDM 100k.
  """

  def stories(c):
    return c["data"]["seq_len"] == 1024

  return {
    "train.steps": lambda c: 80_000 if form == "causal" and stories(c) else c["train"]["steps"]
  }


ROWS = {
  # The judge comes first: every other row asks it.
  "judge": Row("judge", f"{CONFIG}:judge", label="the test split's own texts"),
  "ilm": Row("ilm", f"{CONFIG}:insertion", recipe("insertion"), label="ILM"),
  "mdm": Row(
    "mdm",
    f"{CONFIG}:masked_diffusion",
    recipe("masked_diffusion"),
    label="masked diffusion (MDM), as released",
  ),
  "arm": Row("arm", f"{CONFIG}:causal", recipe("causal"), label="left to right (ARM)"),
}


def widened(
  d_model: int, num_layers: int, num_heads: int, d_ff: int, d_cond: int, **fields
) -> Callable:
  """Override of `model`, whatever its kind; fields: of the model."""

  def change(config):
    model = dict(
      config["model"],
      d_model=d_model,
      num_layers=num_layers,
      mlp=dict(config["model"]["mlp"], d_ff=d_ff),
      **fields,
    )
    if model["kind"] == "masked_diffusion":
      return model | dict(num_heads=num_heads, d_cond=d_cond)
    return model | dict(mixer=dict(model["mixer"], num_heads=num_heads))

  return change


def corpus(name: str):
  """Overrides of a size at paper scale."""
  source, unit, seq_len, steps = {
    "lm1b": ("tfds:lm1b", "document", 128, 1_000_000),
    "stories": ("array_record:stories/{split}-*.array_record", "document", 1024, 100_000),
  }[name]
  bert = 30_522 + 5
  return {
    "data.source": source,
    "data.unit": unit,
    "data.seq_len": seq_len,
    "data.batch_size": 512,
    "data.tokenizer": dict(kind="bpe", path="bert-base-uncased", separator="[SEP]"),
    # The judge there is a checkpoint, so that the models may read every document.
    "data.fold": lambda c: c["data"]["fold"] if judged_by_a_run() else None,
    "model": lambda c: widened(
      768, 12, 12, 3072, 128, dtype="bfloat16", vocab_size=bert, loss_chunk=512
    )(c),
    "train.steps": steps,
  }


PAPER_RECIPE = {
  "optimizer.learning_rate": 1e-4,
  "optimizer.b2": 0.999,
  "schedule": dict(kind="constant", warmup_steps=1_000),
  "train.ema_decay": 0.9999,
  "train.log_every": 100,
  "train.save_every": 5_000,
  "eval.every": 10_000,
  "train.init": lambda c: (
    "own" if c["model"]["kind"] == "masked_diffusion" else "torch_identical_layers"
  ),
}
SCALES = {
  "smoke": Scale(
    "3 layers, d_model 96, 3 heads of 32, definitions of WordNet of up to 30 pieces of a 1,024-piece BPE, 600 "
    "steps of 64 texts (about a minute a row on an idle core); models and judge trained on disjoint halves"
  ),
  "small": Scale(
    "4 layers, d_model 512, 8 heads of 64, the same texts up to 62 pieces, 20,000 steps of 256 texts; models and "
    "judge trained on disjoint halves",
    overrides={
      "model": widened(512, 4, 8, 2048, 128, dtype="bfloat16"),
      "data.seq_len": 64,
      "data.batch_size": 256,
      "optimizer.learning_rate": 5e-4,
      "schedule.warmup_steps": 500,
      "train.steps": 20_000,
      "train.log_every": 100,
      "train.save_every": 2_000,
      "eval.every": 2_000,
    },
  ),
  "paper": Scale(
    "the paper's recipe without its dropout: 12 layers, d_model 768, 12 heads; LM1B 128 tokens, 1M steps; Stories 1,024 tokens, 100k "
    "(ARM 80k) steps; 512 texts a step; judge: the checkpoint in $JAXLM_JUDGE, Llama-3.2-3B in the paper",
    overrides=PAPER_RECIPE,
    sizes={"lm1b": corpus("lm1b"), "stories": corpus("stories")},
  ),
}


def judged_by_a_run() -> bool:
  return not os.environ.get("JAXLM_JUDGE")


def main_judge(workdir: str):
  """The checkpoint folder in $JAXLM_JUDGE, or the row `judge` of the same work folder."""
  if judged_by_a_run():
    return trained_beside("judge")(workdir)
  from jaxlm.interop.judge import checkpoint_judge

  return checkpoint_judge(os.environ["JAXLM_JUDGE"])


def trigram(workdir: str):
  from jaxlm.evaluation.trigram_judge import TrigramJudge

  return TrigramJudge()


def sampling():
  """LM1B as released: the best slot, its token from a nucleus of 0.9, stop at 0.9; left to right
  with the same nucleus.
  """
  from jaxlm.generation.insertion import Filter, InsertionSampling
  from jaxlm.generation.sampling import Sampling

  return dict(
    insertion=InsertionSampling(Filter(top_p=0.9), Filter(top_k=1)),
    causal=Sampling(top_p=0.9),
    stop_threshold=0.9,
  )
