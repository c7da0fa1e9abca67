"""Published peaks of accelerators: bfloat16 FLOP/s per device, dense."""

PEAK_FLOPS = {
  # cloud.google.com/tpu/docs, system architecture pages; a device is a chip
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU7x": 1153e12,  # a device is one of the two cores of a chip (2307e12)
  # nvidia.com data sheets, tensor cores without sparsity
  "NVIDIA A100": 312e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
  """FLOP/s of one device, None where it is not published here (a CPU)."""
  names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
  return PEAK_FLOPS[max(names, key=len)] if names else None
