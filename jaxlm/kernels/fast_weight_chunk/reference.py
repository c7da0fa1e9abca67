"""The operator, as the formulas of docs/specs/lact.md, section 2 read: unrolled, nothing shared,
differentiated by autodiff.

Axes as in `rule`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.fast_weight_chunk.rule import Causal, apply_update, dot_in, initial_state, read


def step(rule, weights, k_BNTH, v_BNTH, eta):
  """Descent direction of sum_t -eta_t <f_W(k_t), v_t>, each matrix with its own eta (spec 2.3)."""
  dot = dot_in(rule.dtype)
  if rule.network == "linear":
    return _rounded(rule, (dot("...tj,...th->...jh", v_BNTH, k_BNTH * eta[0]),))
  w0_BNFH, w1_BNHF, w2_BNFH = weights
  y0_BNTF = dot("...th,...fh->...tf", k_BNTH, w0_BNFH)
  y2_BNTF = dot("...th,...fh->...tf", k_BNTH, w2_BNFH)
  g_BNTF = dot("...th,...hf->...tf", v_BNTH, w1_BNHF)
  s_BNTF = jax.nn.sigmoid(y0_BNTF)
  dy2_BNTF = g_BNTF * y0_BNTF * s_BNTF
  dy0_BNTF = g_BNTF * y2_BNTF * s_BNTF * (1 + y0_BNTF * (1 - s_BNTF))
  hid_BNTF = y0_BNTF * s_BNTF * y2_BNTF
  return _rounded(
    rule,
    (
      dot("...tf,...th->...fh", dy0_BNTF, k_BNTH * eta[0]),
      dot("...th,...tf->...hf", v_BNTH, hid_BNTF * eta[1]),
      dot("...tf,...th->...fh", dy2_BNTF, k_BNTH * eta[2]),
    ),
  )


def fast_weight_chunk(rule, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items):
  """Items in order: learn a slice, read a slice.

  Returns (what was read, in the order of the items, state).
  """
  outs = []
  for start, stop, update, apply in items:
    part = slice(start, stop)
    if update:
      m_BN = None if beta_BNT is None else beta_BNT[..., part].mean(-1)
      delta = step(
        rule,
        state.current,
        k_BNTH[..., part, :],
        v_BNTH[..., part, :],
        tuple(e[..., part, :] for e in eta),
      )
      state = apply_update(rule, state, delta, m_BN, implementation="reference")
    if apply:
      outs.append(read(rule, state.current, q_BNTH[..., part, :]).astype(v_BNTH.dtype))
  return joined(outs, v_BNTH), state


def joined(outs, v_BNTH):
  """What the items read, one behind the other, as the released operator returns it; without any, no
  token.
  """
  return jnp.concatenate(outs, -2) if outs else v_BNTH[..., :0, :]


def causal_items(schedule: Causal, length: int):
  """Chunk c is read before it is learned; the last chunk is not learned (spec 2.2)."""
  starts = range(0, max(length, 1), schedule.chunk)
  items = []
  for start in starts:
    stop = min(start + schedule.chunk, length)
    items.append((start, stop, False, True))
    if stop < length:
      items.append((start, stop, True, False))
  return items


def causal(rule, weights, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, schedule, segment_ids_BT=None):
  """The causal schedule; with segment ids, every token reads a state that only its own document has
  written.
  """
  momentum = beta_BNT is not None
  if segment_ids_BT is None:
    state = initial_state(rule, weights, momentum=momentum)
    return fast_weight_chunk(
      rule, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, causal_items(schedule, q_BNTH.shape[-2])
    )
  # The definition for packed rows: every document alone, on the chunk grid of the row.
  segment_ids_BT, outs, states = (
    np.asarray(segment_ids_BT),
    [],
    [],
  )  # concrete: the loop below depends on them
  for row in range(q_BNTH.shape[0]):

    def one(tree, row=row):
      return jax.tree.map(lambda x: x[row : row + 1], tree)

    ids, out = segment_ids_BT[row], []
    bounds = [0] + [t for t in range(1, ids.shape[0]) if ids[t] != ids[t - 1]] + [ids.shape[0]]
    for start, stop in zip(bounds, bounds[1:]):
      state = initial_state(rule, one(weights), momentum=momentum)
      items, at = [], start
      while at < stop:
        end = min((at // schedule.chunk + 1) * schedule.chunk, stop)
        items.append((at, end, False, True))
        if end % schedule.chunk == 0 and end < ids.shape[0] and int(ids[start]) > 0:
          items.append((at, end, True, False))
        at = end
      part, state = fast_weight_chunk(
        rule, state, one(q_BNTH), one(k_BNTH), one(v_BNTH), one(eta), one(beta_BNT), items
      )
      out.append(part)
    outs.append(jnp.concatenate(out, -2))
    states.append(state)
  return jnp.concatenate(outs), jax.tree.map(lambda *x: jnp.concatenate(x), *states)


def _rounded(rule, delta):
  if rule.fused and rule.dtype:
    delta = tuple(d.astype(rule.dtype).astype(jnp.float32) for d in delta)
  return delta
