"""Numbers around an H-Net: learning-rate multipliers, weight-decay presets, FLOPs (`specs/hnet.md` 11, 17)."""

from collections.abc import Sequence

N_GPT = 4.6      # bytes per GPT-2 token on FineWeb-Edu

#: (regular expression in the parameter's path, weight decay), the last match wins; what matches none decays as usual.
#: official: the release's literal rule, names ending in `.bias` or containing `.norm.`, with `optimizer.decay = "all"`:
#:   norms, dt_bias, A_log, D and embeddings decay, most likely by accident.
#: clean: no vectors and no embedding, with `optimizer.decay = "matrices"`.
DECAY_OVERRIDES = {
    "official": ((r"/(b_\w+|norm_scale)$", 0.0),),
    "clean": ((r"^embed/", 0.0),),
}
DECAY = {"official": "all", "clean": "matrices"}


def stage_multipliers(d_model: Sequence[int], targets: Sequence[float], n_gpt: float = N_GPT) -> tuple[float, ...]:
  """lambda^s = sqrt(n_gpt prod_{i>=s} N^i / prod_i N^i * D^S / D^s), N^S = 1 (paper, eq. 11). One per stage."""
  if len(targets) != len(d_model) - 1:
    raise ValueError(f"{len(targets)} targets for {len(d_model)} widths: an H-Net of S chunkings has S + 1 widths")
  out, before = [], 1.0
  for s, width in enumerate(d_model):
    out.append((n_gpt / before * d_model[-1] / width) ** 0.5)
    before *= targets[s] if s < len(targets) else 1.0
  return tuple(out)


def lr_multipliers(multipliers: Sequence[float]) -> tuple[tuple[str, float], ...]:
  """`optimizer.lr_multipliers` of one multiplier per stage, outside in. Embedding and head follow stage 0; a stage's
  padding vector, its own."""
  return tuple((r"^backbone/" + "inner/" * s if s else "", float(m)) for s, m in enumerate(multipliers))
