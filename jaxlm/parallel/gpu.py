"""XLA flags for GPUs: the one place, with a reason each.

They are set before the backend starts, only where there is an NVIDIA GPU and only if XLA_FLAGS is
not set: whoever sets XLA_FLAGS decides alone. The trainer's commands are the same on a CPU, one GPU
and several; to find a NaN on one device, `--config.train.debug=True`.
"""

import os
import pathlib

FLAGS = {
  # Collectives are started as early and awaited as late as their data allow: fsdp's gathers run
  # under the matmuls.
  "xla_gpu_enable_latency_hiding_scheduler": "true",
  # In the loop over layers the scheduler cannot look past an iteration: these move the gather of
  # the next layer's weights, and the reduction of the last layer's gradients, into the iteration
  # before or after.
  "xla_gpu_enable_pipelined_all_gather": "true",
  "xla_gpu_enable_pipelined_reduce_scatter": "true",
  # Without a second buffer a gather for the next iteration would have to wait until this one has
  # read its own.
  "xla_gpu_enable_while_loop_double_buffering": "true",
  # One gather of a layer's weights, not one for each of its matrices: below some 100 MB latency
  # dominates.
  "xla_gpu_all_gather_combine_threshold_bytes": str(128 * 2**20),
  "xla_gpu_reduce_scatter_combine_threshold_bytes": str(128 * 2**20),
}


def flags() -> str:
  return " ".join(f"--{name}={value}" for name, value in FLAGS.items())


def set_flags(environ=os.environ, devices: str = "/dev") -> bool:
  """Sets XLA_FLAGS for a GPU; whether it did. Called before any array exists."""
  platforms = environ.get("JAX_PLATFORMS", "")
  wanted = not platforms or any(name in platforms for name in ("cuda", "gpu"))
  if "XLA_FLAGS" in environ or not wanted or not any(pathlib.Path(devices).glob("nvidia[0-9]*")):
    return False
  environ["XLA_FLAGS"] = flags()
  return True
