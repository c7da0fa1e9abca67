"""What each registered component's parameters are to an optimiser, against the committed table
parameter_roles.txt.

A new component needs an entry in COMPONENTS below and a section in the table; the failure prints
the section as it is, to be read before it is committed.
"""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layers.embedding import EMBEDDINGS
from jaxlm.layers.lact_video import VideoLaCTConfig
from jaxlm.layers.mixer import MIXERS
from jaxlm.layers.norms import NORMS
from jaxlm.layers.positions import POSITIONS
from jaxlm.layers.routers import ROUTERS
from jaxlm.models import MODELS
from jaxlm.models.encoder_decoder import REDUCTIONS, EncoderDecoderConfig
from jaxlm.models.lact_nvs import NVSConfig, Views
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig
from jaxlm.parallel.rules import Axes, logical_axes, path_name
from jaxlm.training.optimizers import SGD, AdamW, Lion, Muon, _muon_dimensions

TABLE = pathlib.Path(__file__).with_name("parameter_roles.txt")
ATTENTION = dict(kind="attention", num_heads=2, use_bias=True)
DECODER = dict(
  kind="decoder",
  vocab_size=11,
  d_model=8,
  num_layers=2,
  mlp=dict(d_ff=16, use_bias=True),
  mixer=ATTENTION,
)
NVS = dict(kind="lact_nvs", d_model=8, num_layers=2, patch=2, head_dim=4)
T5 = dict(
  vocab_size=16, d_model=8, d_ff=16, num_heads=2, d_kv=4, num_encoder_layers=3, num_decoder_layers=2
)
LACT = dict(
  kind="lact",
  num_heads=4,
  window=4,
  qk_norm=True,
  use_bias=True,
  fast=dict(num_heads=2, chunk=4, update=dict(momentum=True)),
)
MAMBA = dict(head_dim=8, d_state=4, use_bias=True)
STAGES = (
  dict(d_model=8, d_ff=16, mamba=MAMBA),
  dict(d_model=16, d_ff=16, attention=dict(num_heads=2)),
)


def hnet(router="learned", **more):
  return dict(
    kind="hnet", layout="m1 [T1] M1", stages=[STAGES[0] | {"router": router}, STAGES[1]], **more
  )


#: section -> (what to build, the subtree that is the component's own). Of a position: what only the
#: decoder with it has.
COMPONENTS = {
  "mixer attention": (DECODER | dict(mixer=ATTENTION | dict(qk_norm="rms")), "blocks/mixer"),
  "mixer similarity_attention": (
    DECODER | dict(mixer=dict(kind="similarity_attention", num_heads=2, slot="kv", features="mlp")),
    "blocks/mixer",
  ),
  "mixer key_only_attention": (
    DECODER | dict(mixer=dict(kind="key_only_attention", num_heads=2)),
    "blocks/mixer",
  ),
  "mixer stream_attention": (
    DECODER | dict(mixer=dict(kind="stream_attention", num_heads=2)),
    "blocks/mixer",
  ),
  "mixer channel_mlp": (DECODER | dict(mixer=dict(kind="channel_mlp", d_ff=8)), "blocks/mixer"),
  "mixer mamba2": (DECODER | dict(mixer=dict(kind="mamba2", num_groups=2) | MAMBA), "blocks/mixer"),
  "mixer lact": (DECODER | dict(mixer=LACT), "blocks/mixer"),
  "mixer lact, low rank": (
    DECODER | dict(mixer=LACT | dict(fast=dict(num_heads=2, chunk=4, rank=2))),
    "blocks/mixer/fast",
  ),
  "mixer lact, linear": (
    DECODER | dict(mixer=LACT | dict(fast=dict(num_heads=2, network="linear"))),
    "blocks/mixer/fast",
  ),
  "mixer gla": (DECODER | dict(mixer=dict(kind="gla", num_heads=2, decay_rank=2)), "blocks/mixer"),
  "mixer delta_rule": (DECODER | dict(mixer=dict(kind="delta_rule", num_heads=2)), "blocks/mixer"),
  "mixer gated_delta_rule": (
    DECODER | dict(mixer=dict(kind="gated_delta_rule", num_heads=2)),
    "blocks/mixer",
  ),
  "mixer hybrid": (
    DECODER | dict(mixer=dict(kind="hybrid", members=[ATTENTION, dict(kind="gla", num_heads=2)])),
    "blocks/mixer",
  ),
  "mixer pattern": (
    DECODER | dict(mixer=dict(kind="pattern", members=[ATTENTION, dict(kind="gla", num_heads=2)])),
    "blocks",
  ),
  "mixer video LaCT": (VideoLaCTConfig(num_heads=2, chunk=2), ""),
  **{
    f"position {kind}": (DECODER | dict(position=position), "")
    for kind, position in {
      "none": "none",
      "sinusoidal": "sinusoidal",
      "learned": dict(kind="learned", max_len=8),
      "rope": "rope",
      "alibi": "alibi",
      "t5": "t5",
      "carope, shared": dict(
        kind="carope", share_across_layers=True, freq_source="token_embedding"
      ),
      "cable": "cable",
      "cope": "cope",
      "carope": "carope",
      "carope, decay_kernel = False": dict(kind="carope", decay_kernel=False),
      "t5, a table per layer": dict(kind="t5", share_across_layers=False),
    }.items()
  },
  "embedding learned": (DECODER | dict(tie_embeddings=False), "embed"),
  "embedding lexinvariant": (
    DECODER
    | dict(embedding=dict(kind="lexinvariant", random_prob=0.5, learned_scale=True, out_proj=True)),
    "embed",
  ),
  "embedding lexinvariant, seen or new": (
    DECODER | dict(embedding=dict(kind="lexinvariant", remap=True, output="seen_or_new")),
    "embed",
  ),
  "norm rms": (DECODER | dict(norm="rms"), "blocks/norm"),
  "norm layer": (DECODER | dict(norm="layer"), "blocks/norm"),
  **{
    f"router {kind}": (hnet(router), "backbone/router")
    for kind, router in {
      "learned": "learned",
      "direct": "direct",
      "pool": dict(kind="pool", width=2),
      "space": "space",
      "given": "given",
    }.items()
  },
  **{
    f"reduction {kind}": (
      T5 | dict(kind="encoder_decoder", reduction=dict(kind=kind, layer=1)),
      "reduction",
    )
    for kind in ("delete_gate", "random", "fixed", "strided")
  },
  "reduction boundaries": (
    T5 | dict(kind="encoder_decoder", reduction=dict(kind="boundaries", layer=1, d_ff=4)),
    "reduction",
  ),
  "model decoder": (DECODER | dict(tie_embeddings=False), ""),
  "model skip_decoder": (DECODER | dict(kind="skip_decoder", tie_embeddings=False), ""),
  "model insertion": (
    DECODER | dict(kind="insertion", mixer=ATTENTION | dict(causal=False), slot_embedding=True),
    "",
  ),
  "model masked_diffusion": (
    dict(kind="masked_diffusion", vocab_size=11, d_model=8, num_layers=2, num_heads=2, d_cond=4),
    "",
  ),
  "model encoder_decoder": (T5 | dict(kind="encoder_decoder"), ""),
  "model encoder_decoder, absolute positions": (
    T5 | dict(kind="encoder_decoder", max_positions=8),
    "encoder_position",
  ),
  "model hnet": (hnet(), ""),
  "model lact_nvs": (NVS, ""),
  "model lact_nvs, attention": (NVS | dict(memory="attention"), "blocks/memory"),
}
REGISTRIES = {
  "mixer": MIXERS,
  "position": POSITIONS,
  "embedding": EMBEDDINGS,
  "norm": NORMS,
  "router": ROUTERS,
  "reduction": REDUCTIONS,
  "model": MODELS,
}
#: Kinds that other tests add to the tables.
OTHERS = {"tiny"}


def initialised(described, section):
  """Abstract parameters, boxed with their declarations."""
  key, tokens, options = jax.random.key(0), jnp.ones((1, 8), jnp.int32), {}
  if isinstance(described, VideoLaCTConfig):
    module, arguments = (
      described.build(8, "float32"),
      (jnp.ones((1, 6, 8)), *(jnp.ones((1, 6, 1, 2)),) * 2),
    )
  else:
    cfg = MODELS.build(described)
    module, arguments = cfg.build(), (tokens,)
    if isinstance(cfg, EncoderDecoderConfig):
      arguments = (tokens, tokens)
    elif isinstance(cfg, MaskedDiffusionConfig):
      arguments = (tokens, jnp.ones(1))
    elif isinstance(cfg, NVSConfig):
      views = Views(jnp.ones((1, 2, 3, 4, 4)), jnp.ones((1, 2, 4)), jnp.ones((1, 2, 4, 4)))
      arguments = (views, views._replace(images_BSCYX=None))
    elif section == "router given":
      options = dict(boundaries_BT=tokens > 0)
  return jax.eval_shape(lambda: module.init({"params": key, "noise": key}, *arguments, **options))[
    "params"
  ]


@functools.cache
def own(section):
  """{path: (Axes, shape)} of the component's own parameters."""
  described, subtree = COMPONENTS[section]
  boxed = initialised(described, section)

  def named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}

  axes, leaves = named(logical_axes(boxed)), named(nn.unbox(boxed))
  others = own("model decoder") if section.startswith("position ") else ()
  return {
    path: (axes[path], leaves[path].shape)
    for path in sorted(axes)
    if path not in others and (not subtree or path.startswith(subtree + "/"))
  }


def committed():
  """{section: {path: role as text}} of the table."""
  sections = {}
  for line in TABLE.read_text().splitlines():
    if line.startswith("["):
      here = sections.setdefault(line.strip("[]"), {})
    elif line and not line.startswith("#"):
      path, role = line.split(None, 1)
      here[path] = role
  return sections


def in_words(axes) -> str:
  """decays | spared, and the dimensions that a matrix maps from -> to, as Muon is given them."""
  dims = _muon_dimensions(axes)
  kind = "decays" if axes.role.decays else "spared"
  return (
    kind
    if dims is None
    else (
      f"{kind}, {dims.reduction_axis} -> {dims.output_axis} of ({', '.join(map(str, axes))})"
    ).replace(",)", ")")
  )


@pytest.mark.parametrize("section", COMPONENTS)
def test_a_step_without_gradient_moves_the_parameters_that_the_table_names(section):
  want = committed().get(section)
  got = {path: in_words(axes) for path, (axes, _) in own(section).items()}
  written = "".join([f"[{section}]\n", *(f"{path}  {words}\n" for path, words in got.items())])
  assert want is not None, (
    f"{TABLE.name} has no section for this component; it is, to be read and added:\n{written}"
  )
  assert got == want, f"declared now:\n{written}"
  # Beside each other in one tree, so that a component without parameters is a case too.
  axes = {"other": Axes(("embed", "mlp"))} | {path: a for path, (a, _) in own(section).items()}
  params = {"other": jnp.ones((2, 2))} | {
    path: jnp.ones(shape) for path, (_, shape) in own(section).items()
  }
  zeros = jax.tree.map(jnp.zeros_like, params)
  for optimizer in (
    (AdamW, Lion, SGD, Muon) if section == "mixer lact" else (SGD,)
  ):  # their base class decays
    tx = optimizer(learning_rate=1.0, weight_decay=0.5).build(axes)
    updates, _ = tx.update(zeros, tx.init(params), params, learning_rate=1.0)
    # Exactly: p - 1.0 * (0 + 0.5 p), and nothing at all for the others.
    moved = {path for path, update in updates.items() if np.any(np.asarray(update) != 0)}
    assert moved == {"other"} | {
      path for path, words in want.items() if words.startswith("decays")
    }, optimizer.__name__
    assert all(np.all(np.asarray(updates[path]) == -0.5) for path in moved)


def test_every_registered_component_has_a_section_and_every_section_a_component():
  for noun, kinds in REGISTRIES.items():
    for kind in set(kinds.table) - OTHERS:
      assert any(section.split(",")[0] == f"{noun} {kind}" for section in COMPONENTS), (
        f"{noun} {kind!r} is in no section of COMPONENTS and {TABLE.name}: say which of its parameters decay"
      )
  assert set(committed()) == set(COMPONENTS)


@pytest.mark.parametrize(
  "section", ["mixer lact", "mixer mamba2", "mixer gla", "model masked_diffusion"]
)
def test_muon_orthogonalises_the_declared_matrices_and_leaves_the_rest_to_adam(section):
  found = own(section)
  axes = {path: a for path, (a, _) in found.items()}
  rng = np.random.default_rng(0)
  params = {
    path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, (_, shape) in found.items()
  }
  tx = Muon(learning_rate=1.0, consistent_rms=None, momentum=0.0).build(axes)
  updates, _ = jax.jit(lambda g: tx.update(g, tx.init(g), g, learning_rate=1.0))(params)
  for path, update in updates.items():
    role = axes[path].role
    if not role.is_matrix:
      # Adam's first step is the same size everywhere (Nesterov's (b1 / (1 - b1^2) (1 - b1) + 1)).
      np.testing.assert_allclose(
        np.abs(update), 0.9 * 0.1 / (1 - 0.81) + 1, rtol=1e-3, err_msg=path
      )
      continue
    stacked = [i for i, axis in enumerate(axes[path]) if axis == "layers"]
    dims = [i for i in range(update.ndim) if i not in stacked]
    inputs, outputs = ([dims[n] for n in numbers] for numbers in (role.inputs, role.outputs))
    batch = [i for i in range(update.ndim) if i not in inputs + outputs]
    moved = np.transpose(np.asarray(update), (*batch, *inputs, *outputs))

    def size(dims):
      return int(np.prod([update.shape[i] for i in dims]))

    matrices = moved.reshape(-1, size(inputs), size(outputs))
    scale = max(1, matrices.shape[2] / matrices.shape[1]) ** 0.5
    values = np.linalg.svd(matrices / scale, compute_uv=False)
    # Five Newton-Schulz iterations bring all but the smallest singular values between 0.7 and 1.2
    # (Jordan et al. 2024).
    assert values.max() < 1.25 and np.median(values) > 0.6, (path, values)
