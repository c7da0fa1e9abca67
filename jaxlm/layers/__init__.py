"""Parameterised building blocks (Flax Linen), each with its frozen configuration.

A token mixer stands alone in any module:

  from jaxlm.layers import LaCT, LaCTConfig

  layer = LaCT(LaCTConfig(num_heads=4, window=64), d_model=256)
  variables = layer.init(jax.random.key(0), x_BTD)
  y_BTD, state = layer.apply(variables, x_BTD)

Kinds may be written as in configurations: `AttentionConfig(num_heads=4, position="carope")`.
"""

from typing import TYPE_CHECKING

from jaxlm import lazy

if TYPE_CHECKING:
  from jaxlm.layers.attention import Attention as Attention
  from jaxlm.layers.attention import AttentionConfig as AttentionConfig
  from jaxlm.layers.delete_gate import (
    DeleteGate as DeleteGate,
  )
  from jaxlm.layers.delete_gate import (
    DeleteGateConfig as DeleteGateConfig,
  )
  from jaxlm.layers.delta_rule import (
    DeltaRule as DeltaRule,
  )
  from jaxlm.layers.delta_rule import (
    DeltaRuleConfig as DeltaRuleConfig,
  )
  from jaxlm.layers.delta_rule import (
    GatedDeltaRuleConfig as GatedDeltaRuleConfig,
  )
  from jaxlm.layers.embedding import (
    Embedding as Embedding,
  )
  from jaxlm.layers.embedding import (
    EmbeddingConfig as EmbeddingConfig,
  )
  from jaxlm.layers.embedding import (
    Head as Head,
  )
  from jaxlm.layers.fast_weights import (
    FastWeightConfig as FastWeightConfig,
  )
  from jaxlm.layers.fast_weights import (
    UpdateConfig as UpdateConfig,
  )
  from jaxlm.layers.gla import GLA as GLA
  from jaxlm.layers.gla import GLAConfig as GLAConfig
  from jaxlm.layers.hybrid import Hybrid as Hybrid
  from jaxlm.layers.hybrid import HybridConfig as HybridConfig
  from jaxlm.layers.isotropic import Isotropic as Isotropic
  from jaxlm.layers.isotropic import IsotropicConfig as IsotropicConfig
  from jaxlm.layers.lact import LaCT as LaCT
  from jaxlm.layers.lact import LaCTConfig as LaCTConfig
  from jaxlm.layers.lexinvariant import (
    Lexinvariant as Lexinvariant,
  )
  from jaxlm.layers.lexinvariant import (
    LexinvariantConfig as LexinvariantConfig,
  )
  from jaxlm.layers.mamba2 import Mamba2 as Mamba2
  from jaxlm.layers.mamba2 import Mamba2Config as Mamba2Config
  from jaxlm.layers.mixer import Context as Context
  from jaxlm.layers.mixer import Mixer as Mixer
  from jaxlm.layers.mixer import PatternConfig as PatternConfig
  from jaxlm.layers.mlp import MLP as MLP
  from jaxlm.layers.mlp import MLPConfig as MLPConfig
  from jaxlm.layers.norms import (
    LayerNorm as LayerNorm,
  )
  from jaxlm.layers.norms import (
    LayerNormConfig as LayerNormConfig,
  )
  from jaxlm.layers.norms import (
    RMSNorm as RMSNorm,
  )
  from jaxlm.layers.norms import (
    RMSNormConfig as RMSNormConfig,
  )
  from jaxlm.layers.positions import NoPosition as NoPosition
  from jaxlm.layers.positions import Position as Position
  from jaxlm.layers.positions.additive import Learned as Learned
  from jaxlm.layers.positions.additive import Sinusoidal as Sinusoidal
  from jaxlm.layers.positions.alibi import ALiBi as ALiBi
  from jaxlm.layers.positions.cable import CABLE as CABLE
  from jaxlm.layers.positions.carope import CARoPE as CARoPE
  from jaxlm.layers.positions.cope import CoPE as CoPE
  from jaxlm.layers.positions.rope import RoPE as RoPE
  from jaxlm.layers.positions.t5 import T5Bias as T5Bias

_NAMES = lazy.by_name(
  {
    "jaxlm.layers.attention": "Attention AttentionConfig",
    "jaxlm.layers.delete_gate": "DeleteGate DeleteGateConfig",
    "jaxlm.layers.delta_rule": "DeltaRule DeltaRuleConfig GatedDeltaRuleConfig",
    "jaxlm.layers.embedding": "Embedding EmbeddingConfig Head",
    "jaxlm.layers.fast_weights": "FastWeightConfig UpdateConfig",
    "jaxlm.layers.gla": "GLA GLAConfig",
    "jaxlm.layers.hybrid": "Hybrid HybridConfig",
    "jaxlm.layers.isotropic": "Isotropic IsotropicConfig",
    "jaxlm.layers.lact": "LaCT LaCTConfig",
    "jaxlm.layers.lexinvariant": "Lexinvariant LexinvariantConfig",
    "jaxlm.layers.mamba2": "Mamba2 Mamba2Config",
    "jaxlm.layers.mixer": "Context Mixer PatternConfig",
    "jaxlm.layers.mlp": "MLP MLPConfig",
    "jaxlm.layers.norms": "LayerNorm LayerNormConfig RMSNorm RMSNormConfig",
    "jaxlm.layers.positions": "NoPosition Position",
    "jaxlm.layers.positions.additive": "Learned Sinusoidal",
    "jaxlm.layers.positions.alibi": "ALiBi",
    "jaxlm.layers.positions.cable": "CABLE",
    "jaxlm.layers.positions.carope": "CARoPE",
    "jaxlm.layers.positions.cope": "CoPE",
    "jaxlm.layers.positions.rope": "RoPE",
    "jaxlm.layers.positions.t5": "T5Bias",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = list(_NAMES)
