"""T5 checkpoints against the installed library, option by option, and whose head is tied to what."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.weight_files import read_weights, write_weights
from jaxlm.config import ConfigError
from jaxlm.interop import convert, huggingface

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = dict(
  vocab_size=40,
  d_model=16,
  d_kv=4,
  d_ff=24,
  num_layers=2,
  num_heads=3,
  decoder_start_token_id=0,
  dropout_rate=0.0,
)
TOKENS = np.random.default_rng(0).integers(2, 40, (2, 13))
TARGETS = np.concatenate(
  [np.zeros((2, 1), int), np.random.default_rng(1).integers(2, 40, (2, 9))], axis=1
)


def library_model(*, own_head=False, **options):
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(**BASE | options)).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_((1.0 if p.ndim == 1 else 0.0) + 0.3 * torch.randn_like(p))
  if own_head:
    model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(40, 16))
  return model


def library_logits(model):
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(TOKENS), decoder_input_ids=torch.tensor(TARGETS)
    ).logits.numpy()


def loaded(folder):
  return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def our_logits(folder):
  """Without jit, from what `weights_folder.load` returns."""
  cfg, params = weights_folder.load(folder)
  return np.asarray(
    cfg.build().apply({"params": params}, jnp.asarray(TOKENS), jnp.asarray(TARGETS))
  )


def through(tmp_path):
  assert convert.main(["--from", "hf", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")]) == 0
  assert convert.main(["--from", str(tmp_path / "ours"), "--to", "hf", str(tmp_path / "back")]) == 0


@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(feed_forward_proj="gated-gelu"),
    dict(num_decoder_layers=3),
    dict(num_layers=1),
    dict(relative_attention_num_buckets=8, relative_attention_max_distance=9),
    dict(relative_attention_max_distance=20),
    dict(d_kv=6, num_heads=2),
    dict(tie_word_embeddings=False),
    dict(tie_word_embeddings=False, own_head=True),
    dict(
      feed_forward_proj="gated-gelu", tie_word_embeddings=False, own_head=True, num_decoder_layers=1
    ),
    dict(own_head=True),
    dict(initializer_factor=0.5, dropout_rate=0.1),
  ],
  ids=str,
)
def test_logits_are_the_librarys_in_and_out(tmp_path, options):
  """tie_word_embeddings: of the library's own scale rule. own_head: the file holds lm_head.weight."""
  library_model(**options).save_pretrained(tmp_path / "hf")
  want = library_logits(loaded(tmp_path / "hf"))
  through(tmp_path)
  np.testing.assert_allclose(our_logits(tmp_path / "ours"), want, atol=2e-4, rtol=1e-4)
  np.testing.assert_array_equal(library_logits(loaded(tmp_path / "back")), want)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("head", ["own", "same", "absent"])
def test_a_config_as_version_4_wrote_it_means_what_the_library_takes_it_for(tmp_path, tie, head):
  """tie_word_embeddings alone, beside a file with a head of its own, with the table twice, and
  without a head.
  """
  model = library_model(own_head=head == "own", tie_word_embeddings=tie)
  model.save_pretrained(tmp_path / "hf")
  config = json.loads((tmp_path / "hf" / "config.json").read_text())
  del config["scale_decoder_outputs"]
  (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tie}))
  if head == "same":
    state = dict(read_weights(tmp_path / "hf"))
    write_weights(tmp_path / "hf", state | {"lm_head.weight": state["shared.weight"].copy()})
  want = library_logits(loaded(tmp_path / "hf"))
  through(tmp_path)
  np.testing.assert_allclose(our_logits(tmp_path / "ours"), want, atol=2e-4, rtol=1e-4)
  np.testing.assert_array_equal(library_logits(loaded(tmp_path / "back")), want)


def test_a_head_beside_a_tied_table_is_not_dropped_without_the_decision():
  state = {k: v.numpy() for k, v in library_model(own_head=True).state_dict().items()}
  config = library_model().config.to_dict()
  with pytest.raises(WeightsError, match="lm_head.weight differs from shared.weight"):
    huggingface.import_params(config, state)
  cfg, params, notes = huggingface.read_checkpoint(config, state)
  assert not cfg.tie_embeddings and cfg.scale_logits and "lm_head.weight" in notes[0]
  np.testing.assert_array_equal(params["head"]["w_out"], state["lm_head.weight"])


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(feed_forward_proj="gelu"), "feed_forward_proj = 'gelu'"),
    (dict(feed_forward_proj="gated-silu"), "'gated-silu'"),
    (dict(dense_act_fn="gelu"), "dense_act_fn = 'gelu'"),
    (dict(is_gated_act=True), "is_gated_act = True"),
    (dict(layer_norm_epsilon=1e-5), "layer_norm_epsilon"),
    (dict(is_encoder_decoder=False), "is_encoder_decoder = False"),
    (dict(decoder_start_token_id=2), "decoder_start_token_id = 2"),
    (dict(pad_token_id=3), "pad_token_id = 3"),
    (dict(tie_encoder_decoder=True), "tie_encoder_decoder"),
  ],
  ids=str,
)
def test_what_the_model_does_not_do_is_refused(change, said):
  config = transformers.T5Config(**BASE).to_dict()
  huggingface.read_config(config)
  with pytest.raises(ConfigError, match=said):
    huggingface.read_config(config | change)


def test_files_with_another_name_of_the_table_and_an_unused_bias_are_read_as_the_library_reads_them(
  tmp_path,
):
  library_model().save_pretrained(tmp_path / "hf")
  state = dict(read_weights(tmp_path / "hf"))
  state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
  bias = "block.0.layer.{}.relative_attention_bias.weight"
  state["decoder." + bias.format("1.EncDecAttention")] = (
    state["decoder." + bias.format("0.SelfAttention")] + 1
  )
  write_weights(tmp_path / "hf", state)
  want = library_logits(loaded(tmp_path / "hf"))
  through(tmp_path)
  np.testing.assert_allclose(our_logits(tmp_path / "ours"), want, atol=2e-4, rtol=1e-4)
