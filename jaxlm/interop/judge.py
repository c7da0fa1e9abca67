"""A published causal language model as a judge of texts, from a local Hugging Face folder."""

import pathlib

from jaxlm.checkpoint.weight_files import read_json, read_weights
from jaxlm.data.tokenizers.bpe import BPEFileConfig
from jaxlm.evaluation.causal_judge import CausalJudge
from jaxlm.interop import huggingface


def checkpoint_judge(folder, *, batch_size: int = 8) -> CausalJudge:
  """GPT-2, Llama or any other architecture that `jaxlm.interop.huggingface` reads; its tokenizer
  lies in the folder.

  Texts begin behind the token that the tokenizer puts in front of one, else behind the
  configuration's `bos_token_id`, else behind the separator.
  """
  folder = pathlib.Path(folder)
  config = read_json(folder / "config.json")
  tokenizer = BPEFileConfig(str(folder)).load()
  cfg, params, _ = huggingface.read_checkpoint(config, read_weights(folder))
  if tokenizer.begin:
    start = tokenizer.begin[-1]
  else:
    start = config.get("bos_token_id")
  return CausalJudge(
    cfg, params, tokenizer, tokenizer.separator if start is None else int(start), batch_size
  )
