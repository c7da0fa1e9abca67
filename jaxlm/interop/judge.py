"""A published causal language model as a judge of texts, from a local Hugging Face folder."""

import pathlib

from jaxlm.data.tokenizers.bpe import BPEFileConfig
from jaxlm.evaluation.causal_judge import CausalJudge
from jaxlm.interop import huggingface
from jaxlm.interop.huggingface.files import read_json, read_weights


def checkpoint_judge(folder, *, batch_size: int = 8) -> CausalJudge:
  """GPT-2, Llama or any other architecture that `jaxlm.interop.huggingface` reads; its tokenizer lies in the folder.

  Texts begin behind `bos_token_id` where the tokenizer's model has one, else behind its end-of-text token.
  """
  folder = pathlib.Path(folder)
  config = read_json(folder / "config.json")
  tokenizer = BPEFileConfig(str(folder)).load()
  cfg, params, _ = huggingface.read_checkpoint(config, read_weights(folder))
  start = config.get("bos_token_id")
  return CausalJudge(cfg, params, tokenizer, tokenizer.separator if start is None else int(start), batch_size)
