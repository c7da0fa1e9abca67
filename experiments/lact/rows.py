"""The mixers that every LaCT table compares, at any size."""

import importlib.util
import pathlib

from jaxlm.experiments import Row

MICRO = "configs/lact/micro.py"
LABELS = {
  "swa": "window attention",
  "full": "full attention",
  "gla": "GLA + window",
  "delta_rule": "DeltaNet + window",
  "lact_gd": "LaCT, gradient descent",
  "lact_momentum": "LaCT, momentum",
  "lact_muon": "LaCT, Muon",
}
# More keys than a head of the fast weights has channels (32): fifteen fit into any memory. Whoever
# remembers the last 16 answers, as the window does, stays at (39/40)^16 ln 4 = 0.92 nats.
MANY_KEYS = {"data.num_keys": 40, "data.num_values": 4}
# One GPU: rows of random words, which need two layers that work together and some thousand steps.
SMALL = {
  "model.d_model": 512,
  "model.num_layers": 8,
  "model.mlp.d_ff": 1536,
  "model.dtype": "bfloat16",
  "data": dict(kind="repeated_words", seq_len=4096, batch_size=16, num_words=384, word_chars=4),
  "optimizer": dict(
    kind="adamw", learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
  ),
  "schedule.warmup_steps": 500,
  "train.steps": 20_000,
  "train.log_every": 200,
  "train.save_every": 2_000,
}


def mixers() -> dict:
  """The rows' mixers, from the configuration that names them."""
  spec = importlib.util.spec_from_file_location(
    "lact_micro", pathlib.Path(__file__).parents[2] / MICRO
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.MIXERS


def scaled(mixer: dict, heads: int, fast_heads: int, window: int) -> dict:
  """The same mixer with other sizes."""
  out = dict(mixer)
  if "members" in out:
    out["members"] = [scaled(m, heads, fast_heads, window) for m in out["members"]]
    return out
  out["num_heads"] = heads if out["kind"] in ("attention", "lact") else fast_heads
  if "window" in out:
    out["window"] = window
  if "fast" in out:
    out["fast"] = dict(out["fast"], num_heads=fast_heads, chunk=window)
  return out


def at_scale(mixer: dict):
  """The mixer as an override: as it is in miniature; heads of 64, 4 fast heads, chunk and window
  256 from d_model 512.
  """
  return lambda c: (
    scaled(mixer, c["model"]["d_model"] // 64, 4, 256) if c["model"]["d_model"] >= 512 else mixer
  )


def row(name: str, config: str = MICRO) -> Row:
  return Row(name, config, {"model.mixer": at_scale(mixers()[name])}, label=LABELS[name])
