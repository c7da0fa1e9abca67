"""What the names of a run's numbers mean, in one line each."""

import re
from collections.abc import Iterable

#: Regular expression of a whole name, without `eval/` -> meaning. {0}: what its first group found.
MEANINGS = {
  r"loss": "mean loss of what is predicted, in nats (of images: squared error)",
  r"objective": "what is minimised: the loss and its extra terms",
  r"bits_per_byte": "loss in bits, per byte of text: comparable between tokenizers",
  r"perplexity@(\d+)": "exp(loss) per token over texts of {0} tokens",
  r"ppl@([\d.]+)x": "exp(loss) per token at {0} times the training length",
  r"loss@([\d.]+)x": "loss, nats per token, at {0} times the training length",
  r"bpb@([\d.]+)x": "bits per byte at {0} times the training length",
  r"accuracy": "share of predicted tokens that are right",
  r"sequence_accuracy": "share of answers that are right as a whole",
  r"guarded": "share of the guarded tokens whose probability is still lowered",
  r"log_p": "mean log probability of the guarded tokens, in nats",
  r"grad_norm": "norm of the gradient before clipping",
  r"learning_rate": "the learning rate of this step",
  r"tokens_per_s": "training speed over all devices",
  r"goodput": "seconds of the steps that count, as a share of the seconds since the run first started",
  r"step_s": "seconds per step",
  r"mfu": "share of the devices' peak FLOP/s that the model's FLOPs make up",
  r"skipped": "steps that changed nothing, because their loss or gradient was not finite or a spike",
  r"empty": "steps without a target",
  r"spike": "steps skipped for a loss far above the recent median",
  r"redone": "repetitions of a step in a larger bucket",
  r"z": "mean square of log Z, the softmax's denominator",
  r"ratio_(\d+)": "ratio loss of stage {0}, which asks for its share of boundaries; about 1 on target",
  r"boundaries_(\d+)": "share of stage {0}'s positions that begin a chunk",
  r"tokens_per_chunk_(\d+)": "positions per chunk at stage {0}",
  r"chunks_max_(\d+)": "most chunks of a row at stage {0}",
  r"capacity_(\d+)": "slots for chunks at stage {0} of the program that ran: the present bucket",
  r"clipped_chunks": "chunks that did not fit and were lost, in training only",
  r"token": "nats of the missing tokens (insertion)",
  r"stop": "nats of the stop head's decision (insertion)",
  r"stop_accuracy": "share of the stop head's decisions that are right",
  r"deleted": "share of the encoder's tokens that are deleted",
  r"gate_mean": "mean of the delete gate, which the regulariser asks for",
  r"alpha": "weight of the gate's regulariser",
  r"score_excess": "regulariser of the attention scores",
  r"boundary_loss": "loss of the predicted segment boundaries",
  r"kept_max": "most tokens that a row kept",
  r"dropped_rows": "rows whose kept tokens did not fit",
  r"dropped_tokens": "kept tokens that did not fit",
  r"divergence": "KL divergence from the teacher",
  r"teacher_loss": "the teacher's own loss",
  r"mse": "mean squared error of pixels",
  r"psnr": "peak signal-to-noise ratio of the views, in dB",
  r"perceptual": "perceptual distance of the views",
}


def meaning(name: str) -> str:
  """One line about a number; '' of a name that is not known. `eval/...` is of the held-out split."""
  short = name.removeprefix("eval/")
  for pattern, text in MEANINGS.items():
    match = re.fullmatch(pattern, short)
    if match:
      return text.format(*match.groups())
  return ""


def explained(names: Iterable[str]) -> list[tuple[str, str]]:
  """(name, meaning) of each name that has one; `eval/x` where there is no `x`."""
  names, found = list(names), []
  for name in names:
    if name.startswith("eval/") and name.removeprefix("eval/") in names:
      continue
    if text := meaning(name):
      found.append((name, text))
  return found
