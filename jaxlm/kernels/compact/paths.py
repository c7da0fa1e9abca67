"""The tiles of positions and of slots that a kernel visits, so that each meets all that it exchanges with.

Axes: B batch, T position, C slot, O tiles of positions, I tiles of slots, S steps.

Ranks do not fall along T, so position tile o exchanges with slot tiles hi_{o-1} .. hi_o, where hi_o
is the tile of the last rank in o. One path goes through all of them: it stays in a tile of positions
and passes on to the next slot tile until hi_o, then to the next tile of positions. The last tile of
positions goes on to the last slot tile. That makes O + I - 1 steps, whatever the ranks are: work is
linear, and the grid is static.
"""

import jax.numpy as jnp


def num_steps(num_position_tiles: int, num_slot_tiles: int) -> int:
  return num_position_tiles + num_slot_tiles - 1


def path(rank_BT, positions: int, slots: int, num_slot_tiles: int, xp=jnp):
  """(position tile, slot tile) of every step, int32 (B, S). Both do not fall, and one of them rises
  by 1 at each step.

  rank_BT: int32, does not fall along T, -1 before the first; T is a multiple of `positions`, the
  size of a tile. slots: the size of a tile of slots. xp: jnp or np.
  """
  B, T = rank_BT.shape
  num_tiles = T // positions
  last_BO = xp.maximum(rank_BT[:, positions - 1 :: positions], 0)
  high_BO = xp.minimum(last_BO // slots, num_slot_tiles - 1)
  # Tile o is left after step o + hi_o; the last one is never left.
  left_BO = high_BO + xp.arange(num_tiles, dtype="int32")[None]
  step_S = xp.arange(num_steps(num_tiles, num_slot_tiles), dtype="int32")
  position_BS = xp.sum(left_BO[:, None, :-1] < step_S[None, :, None], axis=2, dtype="int32")
  return position_BS, step_S[None] - position_BS
