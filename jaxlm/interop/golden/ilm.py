"""Golden checks of insertion models: networks, losses and targets (docs/specs/ilm.md).

Axes: B batch, T position in the official form, L survivor, M missing, V vocab. The release keeps
dropped tokens where they were and hides them; we take them out. `Compacted` goes from their form to
ours, and back for what is compared.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.forms.corruption import compact, reinsert
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.interop import ilm
from jaxlm.interop.golden.case import Tolerance
from jaxlm.objectives.insertion import Insertion, joint_nll, open_slots, packed_nll, stop_nll
from jaxlm.objectives.insertion_transformer import InsertionTransformer, slot_nll

LOGITS = Tolerance(rtol=1e-4, atol=5e-5)
LOSS = Tolerance(rtol=1e-5)
PER_TOKEN = Tolerance(rtol=1e-4, atol=5e-5)
GRADIENT = Tolerance(rtol=1e-3, atol=1e-5)


class Compacted:
  """A batch in our form: what Grain would emit for the file's sequences and drop masks."""

  def __init__(self, ids_BT, inside_BT, drop_BT, pad: int, eos: int | None = None):
    inside_BT, self.drop_BT = np.asarray(inside_BT, bool), np.asarray(drop_BT, bool)
    B, T = ids_BT.shape
    self.visible_BT = inside_BT & ~self.drop_BT
    self.rows = [
      compact(
        ids_BT[b][inside_BT[b]],
        self.drop_BT[b][inside_BT[b]],
        seq_len=T,
        num_missing=T,
        pad=pad,
        eos=eos,
      )
      for b in range(B)
    ]

    def stack(name):
      return np.stack([getattr(row, name) for row in self.rows])

    self.tokens, self.slots, self.missing = stack("tokens"), stack("slots"), stack("missing")
    self.length_B, self.number_B = (
      np.asarray([getattr(r, n) for r in self.rows]) for n in ("length", "number")
    )
    self.place_BT = np.maximum(
      np.cumsum(self.visible_BT, axis=1) - 1, 0
    )  # index of a survivor among the survivors

  def per_slot(self, x_BT, fill=0):
    """Values of the official positions, of survivors only, in our order."""
    out = np.full(self.tokens.shape, fill, np.asarray(x_BT).dtype)
    for b, visible_T in enumerate(self.visible_BT):
      out[b, : self.length_B[b]] = np.asarray(x_BT)[b][visible_T]
    return out

  def back(self, x_BL):
    """Ours in the official positions; what stands at invisible ones means nothing."""
    x_BL = np.asarray(x_BL)
    return x_BL[np.arange(len(x_BL))[:, None], self.place_BT]

  def counts(self, vocab_size: int) -> np.ndarray:
    """int32 (B, L, V): the release's target, dense."""
    out = np.zeros((*self.tokens.shape, vocab_size), np.int32)
    for b, row in enumerate(self.rows):
      np.add.at(out[b], (row.slots[: row.number], row.missing[: row.number]), 1)
    return out

  def official_counts(self, vocab_size: int) -> np.ndarray:
    return self.back(self.counts(vocab_size)) * self.visible_BT[..., None]

  @property
  def batch(self) -> dict:
    index_1T = np.arange(self.tokens.shape[1])[None]
    inside_BT = index_1T < self.length_B[:, None]
    return dict(
      tokens=self.tokens,
      segment_ids=inside_BT.astype(np.int32),
      slots=self.slots,
      missing=self.missing,
      positions=np.minimum(index_1T, self.length_B[:, None] - 1).astype(np.int32),
      num_missing=self.number_B[:, None].astype(np.int32),
      loss_weights=np.ones((len(self.tokens), 1), np.float32),
    )


def compacted(case, eos=None) -> Compacted:
  return Compacted(
    case["in/input_ids"], case["in/attention_mask"], case["in/drop"], case.config["pad"], eos
  )


def load(case, cfg, table):
  return cfg.build(), table.import_params(case.group("param"), dtype=np.float32)


def compare_gradients(case, table, grads) -> None:
  without = case.config.get("params_without_grad", [])
  for name, grad in table.export_params(grads).items():
    if f"grad/{name}" in case:
      case.compare(f"grad/{name}", grad, GRADIENT)
    else:
      case.require(
        f"grad/{name}", name in without, "our parameter has a gradient, the file has none"
      )


def stopping(case):
  """ilm_stopping: network, joint loss and stop loss, from sequences that are compacted first."""
  c, data = case.config, compacted(case)
  cfg = ilm.read_transformer(c, stop_head=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  objective = Insertion(
    c.get("stopping_loss_weight", 1.0),
    c.get("stopping_class_weight"),
    c.get("use_constraint", False),
  )
  batch = data.batch
  if objective.use_constraint:
    batch["blocked"] = data.per_slot(case["in/constraint"])
    wrong = [
      b for b, row in enumerate(data.rows) if batch["blocked"][b][row.slots[: row.number]].any()
    ]
    case.require(
      "in/constraint", not wrong, f"rows {wrong}: a target on a blocked slot costs the release 3e38"
    )

  def loss(params):
    pair = objective.loss(model, params, batch, None, {}, train=True).loss
    return pair.sum / pair.weight

  def forward(params):
    (logits, stop), sown = model.apply(
      {"params": params},
      batch["tokens"],
      batch["segment_ids"],
      batch["positions"],
      mutable=["intermediates"],
    )
    slots = model.apply(
      {"params": params},
      batch["tokens"],
      batch["slots"],
      batch["missing"],
      batch["segment_ids"],
      batch["positions"],
      method="score",
    )
    return logits, stop, slots, sown["intermediates"]["blocks"]["resid"][0]

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  logits, stop_B2, slots, hidden = jax.jit(forward)(params)
  blocked_BT = batch.get("blocked")
  case.compare("out/positions", data.back(batch["positions"]), where=data.visible_BT)
  case.compare("out/x_t", data.back(batch["tokens"]), where=data.visible_BT)
  case.compare("out/visible", data.visible_BT)
  case.compare("out/n_drops", data.number_B)
  case.compare("in/compact_ids", data.tokens)
  case.compare("in/compact_len", data.length_B)
  case.compare("in/compact_counts", data.counts(c["full_vocab"]))
  case.compare("in/target_counts", data.official_counts(c["full_vocab"]))
  for i, h_BLD in enumerate(np.asarray(hidden)):
    case.compare(f"out/hidden_{i}", data.back(h_BLD), LOGITS, where=data.visible_BT)
  case.compare("out/logits", data.back(logits), LOGITS, where=data.visible_BT)
  case.compare("out/stopping_logits", stop_B2, LOGITS)
  open_BT = open_slots(jnp.asarray(batch["segment_ids"]), blocked_BT)
  case.compare(
    "out/per_example_ce",
    joint_nll(slots.log_z_BT, open_BT, slots.target_BM, jnp.asarray(data.number_B)),
    PER_TOKEN,
  )
  stop_B = objective.stop_weight * stop_nll(
    stop_B2, jnp.asarray(data.number_B), objective.stop_class_weight
  )
  case.compare("out/per_example_stopping_loss", stop_B, PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  case.compare("out/loss_float64", value, LOSS)
  compare_gradients(case, table, grads)


def loss_only(case):
  """ilm_loss_only: the losses from given logits, with their gradients."""
  counts_BTV = case["in/counts"]
  n_B = jnp.asarray(case["in/n_drops"])
  M = int(counts_BTV.sum((1, 2)).max())
  slots, missing = (np.zeros((len(counts_BTV), M), np.int32) for _ in range(2))
  for b, count_TV in enumerate(counts_BTV):
    at = np.argwhere(count_TV)
    at = np.repeat(at, count_TV[tuple(at.T)], axis=0)
    slots[b, : len(at)], missing[b, : len(at)] = at.T
  rows_B1 = np.arange(len(slots))[:, None]
  open_BT = open_slots(jnp.asarray(case["in/visible"], jnp.int32))

  def losses(logits_BTV, stop_B2):
    token_B = joint_nll(
      jax.nn.logsumexp(logits_BTV, axis=-1), open_BT, logits_BTV[rows_B1, slots, missing], n_B
    )
    return token_B, stop_nll(stop_B2, n_B)

  def total(*x):
    return jnp.mean(sum(losses(*x)))

  arguments = jnp.asarray(case["in/logits"]), jnp.asarray(case["in/stopping_logits"])
  token_B, stop_B = losses(*arguments)
  value, grads = jax.value_and_grad(total, (0, 1))(*arguments)
  case.compare("out/per_example_ce", token_B, PER_TOKEN)
  case.compare("out/per_example_stopping_loss", stop_B, PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  for name, grad in zip(("logits", "stopping_logits"), grads):
    case.compare(f"grad/{name}", grad, GRADIENT)


def type_constraint(case):
  """ilm_type_constraint: blocked slots are shown to the network and leave the softmax; no stop
  head.
  """
  c, data = case.config, compacted(case)
  cfg = ilm.read_transformer(c, slot_embedding=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  batch = data.batch | {"blocked": data.per_slot(case["in/constraint"])}
  objective = Insertion(use_constraint=True)

  def loss(params):
    pair = objective.loss(model, params, batch, None, {}, train=True).loss
    return pair.sum / pair.weight

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  given = batch["segment_ids"], batch["positions"], jnp.asarray(batch["blocked"])
  logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"], *given)
  slots = jax.jit(
    lambda p: model.apply(
      {"params": p}, batch["tokens"], batch["slots"], batch["missing"], *given, method="score"
    )
  )(params)
  case.compare("in/target_counts", data.official_counts(c["full_vocab"]))
  case.compare("out/logits", data.back(logits), LOGITS, where=data.visible_BT)
  case.compare(
    "out/batch_loss",
    joint_nll(
      slots.log_z_BT,
      open_slots(jnp.asarray(given[0]), given[2]),
      slots.target_BM,
      jnp.asarray(data.number_B),
    ),
    PER_TOKEN,
  )
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)


def packed_legacy(case):
  """ilm_packed_legacy: several segments in a block, dropped tokens in place, one softmax (spec
  2.3).
  """
  c, drop_BT = case.config, np.asarray(case["in/drop"], bool)
  cfg = ilm.read_transformer(c)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  ids_BT, first_BT = case["in/input_ids"], case["in/token_type_ids"] == 0
  B, T = ids_BT.shape
  segment_BT = np.cumsum(first_BT, axis=1).astype(np.int32)
  keys_BT = segment_BT * (~drop_BT & (case["in/attention_mask"] == 1))
  index_1T = np.broadcast_to(np.arange(T, dtype=np.int32)[None], (B, T))
  positions_BT = index_1T - np.maximum.accumulate(np.where(first_BT, index_1T, 0), axis=1)
  case.compare("out/attn", (segment_BT[:, :, None] == keys_BT[:, None]))
  case.compare("out/positions", positions_BT)

  open_BT = ~first_BT & (index_1T < T - 1)
  M = int(drop_BT.sum(1).max())
  slots, missing, weights = (
    np.zeros((B, M), np.int32),
    np.zeros((B, M), np.int32),
    np.zeros((B, M), np.float32),
  )
  for b in range(B):
    at = np.flatnonzero(drop_BT[b])
    left = np.maximum.accumulate(np.where(drop_BT[b], -1, np.arange(T)))
    in_segment = np.bincount(segment_BT[b][at], minlength=T + 1)
    slots[b, : len(at)], missing[b, : len(at)] = left[at], ids_BT[b][at]
    weights[b, : len(at)] = 1 / in_segment[segment_BT[b][at]]
  tokens_BT = np.where(drop_BT, c["mask"], ids_BT)
  given = segment_BT, positions_BT

  def loss(params):
    slots_ = model.apply(
      {"params": params},
      tokens_BT,
      slots,
      missing,
      *given,
      key_segment_ids_BT=keys_BT,
      method="score",
    )
    loss_B = packed_nll(
      slots_.log_z_BT, jnp.asarray(open_BT), slots_.target_BM, jnp.asarray(weights)
    )
    return jnp.mean(loss_B), loss_B

  (value, loss_B), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits, _ = jax.jit(model.apply)(
    {"params": params}, tokens_BT, *given, key_segment_ids_BT=keys_BT
  )
  counts = np.zeros(logits.shape, np.int32)
  for b in range(B):
    np.add.at(counts[b], (slots[b][weights[b] > 0], missing[b][weights[b] > 0]), 1)
  case.compare("in/target_counts", counts)
  case.compare("out/logits", logits, LOGITS)
  case.compare("out/batch_loss", loss_B, LOSS)
  case.compare("out/loss", value, LOSS)
  # Pads are slots of this loss; the release's table has a row for them that is never trained.
  grads["embed"]["embedding"] = grads["embed"]["embedding"].at[c["pad"]].set(0)
  compare_gradients(case, table, grads)


def collator(case):
  """ilm_collator: counts, compaction and the Insertion Transformer's targets of every stored case."""
  c = case.config
  for j in range(len(c["cases"])):
    args = case[f"in/{j}/input_ids"], case[f"in/{j}/attention_mask"], case[f"in/{j}/drop"], c["pad"]
    data, it = Compacted(*args), Compacted(*args, eos=c["eos"])
    whole = [ids[inside] for ids, inside in zip(args[0], np.asarray(args[1], bool))]
    case.require(
      f"out/{j}/reinserted",
      all(np.array_equal(reinsert(r), w) for r, w in zip(data.rows, whole)),
      "survivors and missing tokens do not make the sequence again",
    )
    case.compare(f"out/{j}/ilm_target_counts", data.official_counts(c["full_vocab"]))
    case.compare(f"out/{j}/compact_ids", data.tokens)
    case.compare(f"out/{j}/compact_counts", data.counts(c["full_vocab"]))
    case.compare(f"out/{j}/compact_len", data.length_B)
    per_slot_BL = data.counts(c["full_vocab"]).sum(-1)
    if f"out/{j}/n_drops_per_slot" in case:
      case.compare(f"out/{j}/n_drops_per_slot", per_slot_BL)
    case.compare(f"out/{j}/it_slot_counts", data.back(per_slot_BL) * data.visible_BT)
    # The release also writes EOS at places where no survivor is; they are hidden from its loss.
    case.compare(
      f"out/{j}/it_target_counts",
      it.official_counts(c["full_vocab"]),
      where=data.visible_BT & (np.arange(data.visible_BT.shape[1]) > 0)[None],
    )


def it_loss(case):
  """it_loss: the Insertion Transformer's logits, loss of every slot, and gradients."""
  c, data = case.config, compacted(case, case.config["eos"])
  cfg = ilm.read_transformer(c)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  batch = data.batch
  objective = InsertionTransformer(eos_weight=c["eos_weight"])

  def loss(params):
    pair = objective.loss(
      model,
      params,
      batch,
      None,
      {},
      train=True,
      special_tokens=SpecialTokens(eos=c["eos"]),
    ).loss
    return pair.sum / pair.weight

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  given = batch["segment_ids"], batch["positions"]
  logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"], *given)
  slots = jax.jit(
    lambda p: model.apply(
      {"params": p}, batch["tokens"], batch["slots"], batch["missing"], *given, method="score"
    )
  )(params)
  nll_BT = slot_nll(
    slots.log_z_BT,
    slots.target_BM,
    jnp.asarray(batch["slots"]),
    jnp.asarray(batch["missing"]),
    jnp.asarray(data.number_B),
    eos=c["eos"],
    eos_weight=c["eos_weight"],
  )
  shown_BT = data.visible_BT & (np.arange(data.visible_BT.shape[1]) > 0)[None]
  case.compare("in/target_counts", data.official_counts(c["full_vocab"]), where=shown_BT)
  case.compare("out/logits", data.back(logits), LOGITS, where=data.visible_BT)
  case.compare("out/nlls", data.back(nll_BT)[shown_BT], PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)
