"""Decoder families against the installed library, option by option: logits of what is read, and of
what is written back.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.interop import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=32,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)
TOKENS = np.random.default_rng(0).integers(3, 40, (2, 13))
CASES = [
  ("Qwen2", dict()),
  ("Qwen2", dict(tie_word_embeddings=True, num_key_value_heads=4)),
  ("Qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
  ("Gemma", dict(head_dim=8)),
  ("Gemma", dict(head_dim=4, tie_word_embeddings=False, attention_bias=True)),
  ("Gemma", dict(head_dim=8, hidden_act="silu", num_key_value_heads=1)),
  ("Olmo2", dict()),
  ("Olmo2", dict(attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3)),
  ("Llama", dict(attention_bias=True, mlp_bias=True)),
  ("Llama", dict(tie_word_embeddings=True, hidden_act="gelu")),
  ("Mistral", dict(sliding_window=4)),
  ("Mistral", dict(sliding_window=None)),
  ("Qwen3", dict(head_dim=8, attention_bias=True)),
  ("Qwen2", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
  (
    "Llama",
    dict(
      rope_parameters=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=8, rope_theta=1e4
      )
    ),
  ),
  (
    "Llama",
    dict(
      rope_parameters=dict(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=8,
        rope_theta=1e4,
        mscale=1.0,
        mscale_all_dim=0.5,
        truncate=False,
      )
    ),
  ),
  (
    "Llama",
    dict(
      rope_parameters=dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8,
        rope_theta=1e4,
      )
    ),
  ),
]


def library_model(family, options):
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")(**SIZES | options)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_((1.0 if p.ndim == 1 and family != "Gemma" else 0.0) + 0.3 * torch.randn_like(p))
  return model


def library_logits(model):
  with torch.no_grad():
    return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("family, options", CASES, ids=str)
def test_logits_are_the_librarys_in_and_out(tmp_path, family, options):
  model = library_model(family, options)
  model.save_pretrained(tmp_path / "hf")
  want = library_logits(model)
  assert convert.main(["--from", "hf", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")]) == 0
  cfg, params = weights_folder.load(tmp_path / "ours")
  got = cfg.build().apply({"params": params}, jnp.asarray(TOKENS))
  np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-4)
  assert (
    convert.main(
      [
        "--from",
        str(tmp_path / "ours"),
        "--to",
        "hf",
        str(tmp_path / "back"),
        "--architecture",
        f"{family}ForCausalLM",
      ]
    )
    == 0
  )
  back = getattr(transformers, f"{family}ForCausalLM").from_pretrained(tmp_path / "back").eval()
  np.testing.assert_allclose(library_logits(back), want, atol=1e-5, rtol=1e-5)


def test_gemmas_released_gelu_is_the_tanh_form(tmp_path):
  model = library_model("Gemma", dict(head_dim=8))
  model.save_pretrained(tmp_path / "hf")
  config = json.loads((tmp_path / "hf" / "config.json").read_text()) | {
    "hidden_act": "gelu",
    "hidden_activation": None,
  }
  (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
  assert convert.main(["--from", "hf", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")]) == 0
  cfg, params = weights_folder.load(tmp_path / "ours")
  np.testing.assert_allclose(
    cfg.build().apply({"params": params}, jnp.asarray(TOKENS)),
    library_logits(model),
    atol=2e-4,
    rtol=1e-4,
  )


@pytest.mark.parametrize("seq_len", [32, 48])
def test_dynamic_rope_is_fixed_for_one_length_and_says_so(tmp_path, capsys, seq_len):
  """The library's frequencies depend on the longest input so far; ours are those of inputs of
  seq_len.
  """
  model = library_model(
    "Llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4))
  )
  model.save_pretrained(tmp_path / "hf")
  tokens = np.random.default_rng(1).integers(3, 40, (1, seq_len))
  with torch.no_grad():
    want = model(input_ids=torch.tensor(tokens)).logits.numpy()
  assert (
    convert.main(
      [
        "--from",
        "hf",
        str(tmp_path / "hf"),
        "--to",
        str(tmp_path / "ours"),
        "--seq-len",
        str(seq_len),
      ]
    )
    == 0
  )
  assert f"fixed here as it is for inputs of {seq_len} tokens" in capsys.readouterr().out
  cfg, params = weights_folder.load(tmp_path / "ours")
  np.testing.assert_allclose(
    cfg.build().apply({"params": params}, jnp.asarray(tokens)), want, atol=2e-4, rtol=1e-4
  )
