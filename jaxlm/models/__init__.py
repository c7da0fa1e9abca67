"""Whole networks, chosen by `model.kind`.

A model config is a frozen dataclass of base `jaxlm.models.base.ModelConfig`, which declares what
the network scores and reads. Language models answer, besides `__call__`:

  module.apply(variables, tokens_BT, segment_ids_BT=None, positions_BT=None) -> logits_BTV (float32)
  module.apply(variables, tokens_BT, targets_BT, segment_ids_BT, positions_BT, method="score")
      -> Score(log_prob_BT, log_z_BT, aux), float32; never holds (B, T, V) in float32 when
      cfg.loss_chunk says so
  module.apply(variables, ..., method="run") -> Outputs(logits_BTV, aux, state), of the models that
      decide something on the way (chunks, deletions): aux says what
  cfg.init_state(batch_size, max_len, rewindable=0) -> state;
  module.apply(variables, tokens_BT, state, segment_ids_BT=None, method="extend") -> (logits_BTV,
  state)
      T = 1 is a decoding step, T > 1 a prefill (right padding: segment id 0)
  cfg.rewind(state, length_B) -> state when each row had length_B tokens, exactly; of a state that
      was begun with `rewindable`
"""

from typing import TYPE_CHECKING

from jaxlm import lazy
from jaxlm.config import Kinds

if TYPE_CHECKING:
  from jaxlm.models.base import ModelConfig as ModelConfig
  from jaxlm.models.decoder import Decoder as Decoder
  from jaxlm.models.decoder import DecoderConfig as DecoderConfig
  from jaxlm.models.encoder_decoder import (
    EncoderDecoder as EncoderDecoder,
  )
  from jaxlm.models.encoder_decoder import (
    EncoderDecoderConfig as EncoderDecoderConfig,
  )
  from jaxlm.models.hnet import HNet as HNet
  from jaxlm.models.hnet_config import (
    HNetConfig as HNetConfig,
  )
  from jaxlm.models.hnet_config import (
    JoinConfig as JoinConfig,
  )
  from jaxlm.models.hnet_config import (
    StageConfig as StageConfig,
  )
  from jaxlm.models.insertion import (
    InsertionConfig as InsertionConfig,
  )
  from jaxlm.models.insertion import (
    InsertionNetwork as InsertionNetwork,
  )
  from jaxlm.models.lact_nvs import NVS as NVS
  from jaxlm.models.lact_nvs import NVSConfig as NVSConfig
  from jaxlm.models.masked_diffusion import (
    MaskedDiffusionConfig as MaskedDiffusionConfig,
  )
  from jaxlm.models.masked_diffusion import (
    MaskedDiffusionNetwork as MaskedDiffusionNetwork,
  )
  from jaxlm.models.score import Outputs as Outputs
  from jaxlm.models.score import Score as Score
  from jaxlm.models.skip_decoder import SkipDecoderConfig as SkipDecoderConfig
  from jaxlm.models.skip_decoder import SkipSchedule as SkipSchedule

MODELS = Kinds(
  "model",
  {
    "masked_diffusion": "jaxlm.models.masked_diffusion:MaskedDiffusionConfig",
    "insertion": "jaxlm.models.insertion:InsertionConfig",
    "skip_decoder": "jaxlm.models.skip_decoder:SkipDecoderConfig",
    "decoder": "jaxlm.models.decoder:DecoderConfig",
    "encoder_decoder": "jaxlm.models.encoder_decoder:EncoderDecoderConfig",
    "hnet": "jaxlm.models.hnet_config:HNetConfig",
    "lact_nvs": "jaxlm.models.lact_nvs:NVSConfig",
  },
)

_NAMES = lazy.by_name(
  {
    "jaxlm.models.base": "ModelConfig",
    "jaxlm.models.decoder": "Decoder DecoderConfig",
    "jaxlm.models.encoder_decoder": "EncoderDecoder EncoderDecoderConfig",
    "jaxlm.models.hnet": "HNet",
    "jaxlm.models.hnet_config": "HNetConfig JoinConfig StageConfig",
    "jaxlm.models.insertion": "InsertionConfig InsertionNetwork",
    "jaxlm.models.lact_nvs": "NVS NVSConfig",
    "jaxlm.models.masked_diffusion": "MaskedDiffusionConfig MaskedDiffusionNetwork",
    "jaxlm.models.score": "Outputs Score",
    "jaxlm.models.skip_decoder": "SkipDecoderConfig SkipSchedule",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = ["MODELS", *_NAMES]
