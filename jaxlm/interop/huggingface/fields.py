"""Reading a foreign `config.json`: every field is used, known to be irrelevant, or refused."""

import difflib
from collections.abc import Mapping
from typing import Any

from jaxlm.config import ConfigError, nearest

#: Fields that do not change what a causal language model computes from tokens in evaluation:
#: bookkeeping, generation defaults, initialisation, heads for other tasks, dropout (a choice of
#: training).
IRRELEVANT = frozenset(
  """
  architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path auto_map
  bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id task_specific_params
  use_cache output_attentions output_hidden_states return_dict tie_last_hidden_states tokenizer_class prefix
  initializer_range initializer_factor id2label label2id num_labels problem_type finetuning_task classifier_dropout
  resid_pdrop embd_pdrop attn_pdrop attention_dropout hidden_dropout dropout chunk_size_feed_forward is_decoder
  summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
  gradient_checkpointing _attn_implementation attn_implementation reorder_and_upcast_attn cache_implementation
  use_return_dict torchscript pruned_heads tf_legacy_loss use_bfloat16 unsloth_version unsloth_fixed
  n_special predict_special_tokens _num_labels max_sequence_length is_llama_config transformers.js_config
  max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
  typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
  num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens renormalize_logits
""".split()
)


class Fields:
  """A mapping that remembers what was asked of it.

  Missing and null fields take the given default.
  """

  def __init__(self, mapping: Mapping[str, Any], what: str = "config.json"):
    self.mapping, self.what, self.read = dict(mapping), what, set()

  def get(self, name: str, default: Any = None) -> Any:
    """The field's value. A field that is null counts as absent where the default is not None."""
    self.read.add(name)
    value = self.mapping.get(name, default)
    return default if value is None else value

  def nullable(self, name: str, default: Any) -> Any:
    """As `get`, where null is a value of its own (no window, no cap)."""
    self.read.add(name)
    return self.mapping.get(name, default)

  def number(self, name: str, default: float | int | None = None, *, least: float = 0) -> Any:
    """A required or defaulted number >= least; an int stays an int."""
    value = self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
      raise ConfigError(f"{self.what}: {name} = {value!r}, wanted a number >= {least}")
    return value

  def size(self, name: str, default: int | None = None) -> int:
    value = self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ConfigError(f"{self.what}: {name} = {value!r}, wanted a positive whole number")
    return value

  def choice(self, name: str, table: Mapping[str, Any], default: str) -> Any:
    """The entry of `table` that the field names."""
    value = self.get(name, default)
    if not isinstance(value, str) or value not in table:
      raise ConfigError(
        f"{self.what}: {name} = {value!r} is not supported; {nearest(str(value), table)}"
      )
    return table[value]

  def only(self, name: str, allowed: Any, why: str) -> None:
    """Refuses any value but `allowed` (also the default), with the reason."""
    value = self.get(name, allowed)
    if value != allowed:
      raise ConfigError(
        f"{self.what}: {name} = {value!r} is not supported (only {allowed!r}): {why}"
      )

  def done(self, ignore=()) -> None:
    """Refuses fields that nobody asked for. ignore: names the user vouches for."""
    extra = sorted(set(self.mapping) - self.read - IRRELEVANT - set(ignore))
    if extra:
      listed = ", ".join(
        f"{name!r} = {self.mapping[name]!r}"[:120] + self._near(name) for name in extra
      )
      fields, are, they = (
        ("field", "is", "it does") if len(extra) == 1 else ("fields", "are", "they do")
      )
      raise ConfigError(
        f"{self.what}: {fields} {listed} {are} unknown for this architecture, so the model might compute something "
        f"else. If {they} not change it, say so: "
        + " ".join(f"--ignore_field={name}" for name in extra)
      )

  def _near(self, name: str) -> str:
    close = difflib.get_close_matches(name, self.read, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
