"""Decoding: engines behind one contract, chosen by name or by the model they serve.

    engine = engine_for(config, data=data)           # the default of the model
    generations = engine.generate(params, prompts, max_new_tokens=100, seed=0)

The contract and the table of engines are in `base.py`.
"""

from jaxlm.generation.base import ENGINES, Engine, Generations, Prompt, engine_for
from jaxlm.generation.sampling import Sampling

__all__ = ["ENGINES", "Engine", "Generations", "Prompt", "Sampling", "engine_for"]
