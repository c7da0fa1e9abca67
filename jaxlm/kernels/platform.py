"""Which platform the current trace is for."""

import jax


def target_platform() -> str:
  """'cpu', 'gpu' or 'tpu': the platform the trace is *for*.

  Under ahead-of-time compilation that is the context mesh's device, not the host's backend.
  """
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return device.platform if device is not None else jax.default_backend()
