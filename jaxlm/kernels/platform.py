"""Which platform the current trace is for."""

import jax


def target_platform() -> str:
  """'cpu', 'gpu' or 'tpu': the platform the trace is *for*.

  Under ahead-of-time compilation that is the context mesh's device, not the host's backend.
  """
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return device.platform if device is not None else jax.default_backend()


def target_device_kind() -> str:
  """'TPU v5', 'cpu' ...: the kind of device that the current trace is for."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return device.device_kind if device is not None else jax.devices()[0].device_kind
