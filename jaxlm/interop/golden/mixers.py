"""Checks of the linear recurrences: gated linear attention, the delta rule, the gated delta rule."""

import jax
import jax.numpy as jnp

from jaxlm.interop.golden.case import Tolerance
from jaxlm.kernels.delta_rule import delta_rule
from jaxlm.kernels.gla import gla

OUTPUT = Tolerance(rtol_max=2e-5)
GRADIENT = Tolerance(rtol_max=1e-4)


def recurrence(case):
  """(mixers, gla | delta_rule | gated_delta_rule): output, final state and every gradient of the
  chunked form.
  """
  kind = case.config["kind"]
  arrays = {
    name: jnp.asarray(x) for name, x in case.group("in").items() if not name.startswith("cotangent")
  }
  (B, _, N, H), E = case["in/k"].shape, case["in/v"].shape[-1]
  arrays.setdefault("initial_state", jnp.zeros((B, N, H, E), case["in/v"].dtype))

  @jax.jit
  def run(arrays, cotangents):
    def forward(a):
      names = ("log_decay",) if kind == "gla" else ("beta", "log_decay")[: 1 + ("log_decay" in a)]
      fn = gla if kind == "gla" else delta_rule
      return fn(
        a["q"], a["k"], a["v"], *(a[n] for n in names), initial_state_BNHE=a["initial_state"]
      )

    outputs, vjp = jax.vjp(forward, arrays)
    return outputs, vjp(cotangents)[0]

  (output, state), grads = run(
    arrays,
    tuple(
      jnp.asarray(case.given(f"in/cotangent_{name}", like, ("grad/",)))
      for name, like in (("output", arrays["v"]), ("state", arrays["initial_state"]))
    ),
  )
  case.compare("out/output", output, OUTPUT)
  case.compare("out/final_state", state, OUTPUT)
  stored = case.group("grad")
  for name in stored or grads:
    case.compare(f"grad/{name}", grads[name], GRADIENT)
