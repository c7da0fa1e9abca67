"""Mamba-2 checkpoints against the installed library, option by option: import, export, what is
refused, first releases.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.weight_files import read_weights
from jaxlm.config import ConfigError
from jaxlm.interop import convert, huggingface

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = dict(
  vocab_size=40,
  hidden_size=16,
  num_heads=4,
  head_dim=8,
  state_size=8,
  num_hidden_layers=2,
  n_groups=1,
)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 11))


def library_model(**options):
  torch.manual_seed(0)
  model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**BASE | options)).eval()
  with torch.no_grad():
    for p in model.parameters():  # nothing at its neutral value
      p.add_(0.3 * torch.randn_like(p) if p.ndim == 1 else 0.1 * torch.randn_like(p))
  return model


def library_logits(model, tokens=TOKENS):
  with torch.no_grad():
    return model(torch.tensor(tokens), use_cache=False).logits.numpy()


def our_logits(folder, tokens=TOKENS):
  cfg, params = weights_folder.load(folder)
  return np.asarray(cfg.build().apply({"params": params}, jnp.asarray(tokens)))


def through(tmp_path, folder, *more):
  """(our weights folder, the exported folder) of a checkpoint."""
  assert convert.main(["--from", "hf", str(folder), "--to", str(tmp_path / "ours"), *more]) == 0
  assert convert.main(["--from", str(tmp_path / "ours"), "--to", "hf", str(tmp_path / "back")]) == 0
  return tmp_path / "ours", tmp_path / "back"


@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(n_groups=2),
    dict(n_groups=4),
    dict(use_bias=True, n_groups=2),
    dict(expand=4, num_heads=8),
    dict(head_dim=16, num_heads=2),
    dict(conv_kernel=3),
    dict(state_size=5),
    dict(layer_norm_epsilon=0.1, n_groups=2),
    dict(tie_word_embeddings=True),
    dict(hidden_act="swish"),
    dict(chunk_size=4),
    dict(residual_in_fp32=False),
    dict(norm_before_gate=True, n_groups=2),
    dict(norm_before_gate=False),
    dict(rms_norm=True, intermediate_size=32),
    dict(time_step_rank=3, time_step_min=0.01, time_step_max=0.5, time_step_floor=0.01),
  ],
  ids=str,
)
def test_logits_are_the_librarys_in_and_out(tmp_path, options):
  model = library_model(**options)
  model.save_pretrained(tmp_path / "hf")
  want = library_logits(model)
  ours, back = through(tmp_path, tmp_path / "hf")
  np.testing.assert_allclose(our_logits(ours), want, atol=2e-4, rtol=1e-4)
  again = transformers.Mamba2ForCausalLM.from_pretrained(back).eval()
  np.testing.assert_array_equal(library_logits(again), want)


@pytest.mark.parametrize(
  "options, said",
  [
    (dict(use_conv_bias=False), "use_conv_bias = False"),
    (dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
    (dict(time_step_limit=(0.001, 0.1)), r"time_step_limit = [0.001, 0.1]"),
    (dict(rms_norm=False), "rms_norm = False"),
  ],
  ids=str,
)
def test_what_our_layer_does_not_do_is_refused(tmp_path, capsys, options, said):
  library_model(**options).save_pretrained(tmp_path / "hf")
  assert convert.main(["--from", "hf", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")]) == 2
  assert said in capsys.readouterr().err


def test_a_norm_over_all_channels_of_several_groups_cannot_be_written(tmp_path):
  cfg = huggingface.read_config(json.loads(library_model(n_groups=2).config.to_json_string()))
  cfg = dataclasses.replace(cfg, mixer=dataclasses.replace(cfg.mixer, norm_per_group=False))
  with pytest.raises(ConfigError, match="norm_per_group = False"):
    huggingface.export(cfg, {}, name="Mamba2ForCausalLM")


def test_the_released_codestral_config_is_read():
  """Its config.json, with the fields that the first version of the library wrote and no version
  reads.
  """
  cfg = huggingface.read_config(
    dict(
      architectures=["Mamba2ForCausalLM"],
      model_type="mamba2",
      bos_token_id=0,
      eos_token_id=0,
      pad_token_id=0,
      chunk_size=256,
      conv_kernel=4,
      expand=2,
      head_dim=64,
      hidden_act="silu",
      hidden_size=4096,
      initializer_range=0.1,
      intermediate_size=8192,
      layer_norm_epsilon=1e-5,
      n_groups=8,
      norm_before_gate=True,
      num_heads=128,
      num_hidden_layers=64,
      rescale_prenorm_residual=False,
      residual_in_fp32=True,
      rms_norm=True,
      state_size=128,
      tie_word_embeddings=False,
      time_step_floor=1e-4,
      time_step_init_scheme="random",
      time_step_limit=[0.0, float("inf")],
      time_step_max=0.1,
      time_step_min=0.001,
      time_step_rank=256,
      time_step_scale=1.0,
      torch_dtype="bfloat16",
      use_bias=False,
      use_cache=True,
      use_conv_bias=True,
      vocab_size=32768,
    )
  )
  assert cfg.mixer.num_groups == 8 and cfg.mixer.norm_per_group and not cfg.tie_embeddings
  count = sum(int(np.prod(shape)) for shape in weights_folder.expected_shapes(cfg).values())
  assert count == 7_285_403_648  # the released file's


def release(folder, model, *, vocab_size, **more):
  """The same model as the package mamba_ssm releases it: its config.json and a torch file with both
  names of the head.
  """
  m = model.config
  state = {
    name.replace("embeddings", "embedding"): value.clone()
    for name, value in model.state_dict().items()
  }
  config = (
    dict(
      d_model=m.hidden_size,
      d_intermediate=0,
      n_layer=m.num_hidden_layers,
      vocab_size=vocab_size,
      ssm_cfg=dict(layer="Mamba2", headdim=m.head_dim, d_state=m.state_size, ngroups=m.n_groups),
      attn_layer_idx=[],
      attn_cfg={},
      rms_norm=True,
      residual_in_fp32=True,
      fused_add_norm=True,
      pad_vocab_size_multiple=8,
      tie_embeddings=m.tie_word_embeddings,
    )
    | more
  )
  folder.mkdir()
  torch.save(state, folder / "pytorch_model.bin")
  (folder / "config.json").write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_first_release_is_read_with_its_padded_vocabulary_and_written_for_the_library(
  tmp_path, tied
):
  model = library_model(n_groups=2, tie_word_embeddings=tied)
  folder = release(tmp_path / "ssm", model, vocab_size=35)
  ours, back = through(tmp_path, folder)
  assert weights_folder.load(ours)[0].vocab_size == 40
  want = library_logits(model)
  np.testing.assert_allclose(our_logits(ours), want, atol=2e-4, rtol=1e-4)
  again = transformers.Mamba2ForCausalLM.from_pretrained(back).eval()
  np.testing.assert_array_equal(library_logits(again), want)


def test_the_released_130m_config_is_read():
  cfg = huggingface.read_config(
    dict(
      d_model=768,
      d_intermediate=0,
      n_layer=24,
      vocab_size=50277,
      ssm_cfg=dict(layer="Mamba2"),
      attn_layer_idx=[],
      attn_cfg={},
      rms_norm=True,
      residual_in_fp32=True,
      fused_add_norm=True,
      pad_vocab_size_multiple=16,
      tie_embeddings=True,
    )
  )
  assert (
    cfg.vocab_size == 50288
    and cfg.tie_embeddings
    and cfg.mixer.d_state == 128
    and cfg.mixer.num_groups == 1
  )


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(ssm_cfg={}), "'Mamba1'"),
    (dict(d_intermediate=64), "d_intermediate = 64"),
    (dict(attn_layer_idx=[1]), "attn_layer_idx"),
    (dict(rms_norm=False), "rms_norm = False"),
    (dict(ssm_cfg=dict(layer="Mamba2", d_ssm=8)), "d_ssm = 8"),
    (dict(ssm_cfg=dict(layer="Mamba2", D_has_hdim=True)), "D_has_hdim"),
    (dict(ssm_cfg=dict(layer="Mamba2", dt=1)), "'dt'"),
    (dict(ssm_cfg=dict(layer="Mamba2", norm_before_gate=True)), "norm_before_gate"),
    (dict(ssm_cfg=3), "ssm_cfg = 3"),
  ],
  ids=str,
)
def test_a_first_release_of_another_kind_is_refused_with_the_field(change, said):
  base = dict(d_model=16, n_layer=2, vocab_size=40, ssm_cfg=dict(layer="Mamba2", headdim=8))
  huggingface.read_config(base)
  with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
    huggingface.read_config(base | change)


def test_its_two_names_of_one_table_must_agree(tmp_path, capsys):
  model = library_model(tie_word_embeddings=True)
  folder = release(tmp_path / "ssm", model, vocab_size=40)
  state = torch.load(folder / "pytorch_model.bin")
  torch.save(state | {"lm_head.weight": state["lm_head.weight"] + 1}, folder / "pytorch_model.bin")
  assert convert.main(["--from", "hf", str(folder), "--to", str(tmp_path / "ours")]) == 2
  assert "lm_head.weight differs from backbone.embedding.weight" in capsys.readouterr().err


def test_a_head_of_its_own_beside_a_tied_configuration_is_kept_as_the_library_keeps_it(
  tmp_path, capsys
):
  model = library_model(n_groups=2)
  model.save_pretrained(tmp_path / "hf")
  config = json.loads((tmp_path / "hf" / "config.json").read_text())
  (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
  want = library_logits(transformers.Mamba2ForCausalLM.from_pretrained(tmp_path / "hf").eval())
  ours, back = through(tmp_path, tmp_path / "hf")
  assert "note: lm_head.weight differs from backbone.embeddings.weight" in capsys.readouterr().out
  np.testing.assert_allclose(our_logits(ours), want, atol=2e-4, rtol=1e-4)
  np.testing.assert_array_equal(
    library_logits(transformers.Mamba2ForCausalLM.from_pretrained(back).eval()), want
  )
  state = read_weights(tmp_path / "hf")
  with pytest.raises(
    WeightsError, match="lm_head.weight differs"
  ):  # without the decision, nothing is dropped
    huggingface.import_params(config | {"tie_word_embeddings": True}, state)
