"""Golden checks of insertion models and their baselines (spec ilm).

Axes: B batch, T position in the official form, L survivor, M missing, V vocab. The release keeps dropped tokens where
they were and hides them; we take them out. `Compacted` goes from their form to ours, and back for what is compared.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import star_graphs as stars
from jaxlm.data.insertion import blocked_prefix, compact, reinsert
from jaxlm.evaluation import sequences
from jaxlm.generation import insertion as generation
from jaxlm.generation import masked_diffusion as diffusion_sampler
from jaxlm.interop import ilm
from jaxlm.interop.golden.case import Tolerance
from jaxlm.objectives import masked_diffusion
from jaxlm.objectives.insertion import Insertion, joint_nll, open_slots, packed_nll, stop_nll
from jaxlm.objectives.insertion_transformer import InsertionTransformer, slot_nll

LOGITS = Tolerance(rtol=1e-4, atol=5e-5)
LOSS = Tolerance(rtol=1e-5)
PER_TOKEN = Tolerance(rtol=1e-4, atol=5e-5)
GRADIENT = Tolerance(rtol=1e-3, atol=1e-5)
CERTAIN = 1e-4      # a stop probability this close to the threshold would depend on rounding


class Compacted:
  """A batch in our form: what Grain would emit for the file's sequences and drop masks."""

  def __init__(self, ids_BT, inside_BT, drop_BT, pad: int, eos: int | None = None):
    inside_BT, self.drop_BT = np.asarray(inside_BT, bool), np.asarray(drop_BT, bool)
    B, T = ids_BT.shape
    self.visible_BT = inside_BT & ~self.drop_BT
    self.rows = [compact(ids_BT[b][inside_BT[b]], self.drop_BT[b][inside_BT[b]], seq_len=T, num_missing=T, pad=pad, eos=eos)
                 for b in range(B)]
    stack = lambda name: np.stack([getattr(row, name) for row in self.rows])
    self.tokens, self.slots, self.missing = stack("tokens"), stack("slots"), stack("missing")
    self.length_B, self.number_B = (np.asarray([getattr(r, n) for r in self.rows]) for n in ("length", "number"))
    self.place_BT = np.maximum(np.cumsum(self.visible_BT, axis=1) - 1, 0)     # index of a survivor among the survivors

  def per_slot(self, x_BT, fill=0):
    """Values of the official positions, of survivors only, in our order."""
    out = np.full(self.tokens.shape, fill, np.asarray(x_BT).dtype)
    for b, visible_T in enumerate(self.visible_BT):
      out[b, :self.length_B[b]] = np.asarray(x_BT)[b][visible_T]
    return out

  def back(self, x_BL):
    """Ours in the official positions; what stands at invisible ones means nothing."""
    x_BL = np.asarray(x_BL)
    return x_BL[np.arange(len(x_BL))[:, None], self.place_BT]

  def counts(self, vocab_size: int) -> np.ndarray:
    """int32 (B, L, V): the release's target, dense."""
    out = np.zeros((*self.tokens.shape, vocab_size), np.int32)
    for b, row in enumerate(self.rows):
      np.add.at(out[b], (row.slots[:row.number], row.missing[:row.number]), 1)
    return out

  def official_counts(self, vocab_size: int) -> np.ndarray:
    return self.back(self.counts(vocab_size)) * self.visible_BT[..., None]

  @property
  def batch(self) -> dict:
    index_1T = np.arange(self.tokens.shape[1])[None]
    inside_BT = index_1T < self.length_B[:, None]
    return dict(tokens=self.tokens, segment_ids=inside_BT.astype(np.int32), slots=self.slots, missing=self.missing,
                positions=np.minimum(index_1T, self.length_B[:, None] - 1).astype(np.int32),
                num_missing=self.number_B[:, None].astype(np.int32), loss_weights=np.ones((len(self.tokens), 1), np.float32))


def compacted(case, eos=None) -> Compacted:
  return Compacted(case["in/input_ids"], case["in/attention_mask"], case["in/drop"], case.config["pad"], eos)


def load(case, cfg, table):
  return cfg.build(), table.import_params(case.group("param"), dtype=np.float32)


def compare_gradients(case, table, grads) -> None:
  without = case.config.get("params_without_grad", [])
  for name, grad in table.export_params(grads).items():
    if f"grad/{name}" in case:
      case.compare(f"grad/{name}", grad, GRADIENT)
    else:
      case.require(f"grad/{name}", name in without, "our parameter has a gradient, the file has none")


def stopping(case):
  """ilm_stopping: network, joint loss and stop loss, from sequences that are compacted first."""
  c, data = case.config, compacted(case)
  cfg = ilm.read_transformer(c, stop_head=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  objective = Insertion(c.get("stopping_loss_weight", 1.0), c.get("stopping_class_weight"), c.get("use_constraint", False))
  batch = data.batch
  if objective.use_constraint:
    batch["blocked"] = data.per_slot(case["in/constraint"])
    wrong = [b for b, row in enumerate(data.rows) if batch["blocked"][b][row.slots[:row.number]].any()]
    case.require("in/constraint", not wrong, f"rows {wrong}: a target on a blocked slot costs the release 3e38")

  def loss(params):
    pair, _ = objective.loss(model, params, batch, None, {}, train=True)
    return pair.sum / pair.weight

  def forward(params):
    (logits, stop), sown = model.apply({"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"],
                                       mutable=["intermediates"])
    slots = model.apply({"params": params}, batch["tokens"], batch["slots"], batch["missing"], batch["segment_ids"],
                        batch["positions"], method="score")
    return logits, stop, slots, sown["intermediates"]["blocks"]["hidden"][0]

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
  case.compare("out/per_example_ce", joint_nll(slots.log_z_BT, open_BT, slots.target_BM, jnp.asarray(data.number_B)),
               PER_TOKEN)
  stop_B = objective.stop_weight * stop_nll(stop_B2, jnp.asarray(data.number_B), objective.stop_class_weight)
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
    slots[b, :len(at)], missing[b, :len(at)] = at.T
  rows_B1 = np.arange(len(slots))[:, None]
  open_BT = open_slots(jnp.asarray(case["in/visible"], jnp.int32))

  def losses(logits_BTV, stop_B2):
    token_B = joint_nll(jax.nn.logsumexp(logits_BTV, axis=-1), open_BT, logits_BTV[rows_B1, slots, missing], n_B)
    return token_B, stop_nll(stop_B2, n_B)

  total = lambda *x: jnp.mean(sum(losses(*x)))
  arguments = jnp.asarray(case["in/logits"]), jnp.asarray(case["in/stopping_logits"])
  token_B, stop_B = losses(*arguments)
  value, grads = jax.value_and_grad(total, (0, 1))(*arguments)
  case.compare("out/per_example_ce", token_B, PER_TOKEN)
  case.compare("out/per_example_stopping_loss", stop_B, PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  for name, grad in zip(("logits", "stopping_logits"), grads):
    case.compare(f"grad/{name}", grad, GRADIENT)


def type_constraint(case):
  """ilm_type_constraint: blocked slots are shown to the network and leave the softmax; no stop head."""
  c, data = case.config, compacted(case)
  cfg = ilm.read_transformer(c, slot_embedding=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  batch = data.batch | {"blocked": data.per_slot(case["in/constraint"])}
  objective = Insertion(use_constraint=True)

  def loss(params):
    pair, _ = objective.loss(model, params, batch, None, {}, train=True)
    return pair.sum / pair.weight

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  given = batch["segment_ids"], batch["positions"], jnp.asarray(batch["blocked"])
  logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"], *given)
  slots = jax.jit(lambda p: model.apply({"params": p}, batch["tokens"], batch["slots"], batch["missing"], *given,
                                        method="score"))(params)
  case.compare("in/target_counts", data.official_counts(c["full_vocab"]))
  case.compare("out/logits", data.back(logits), LOGITS, where=data.visible_BT)
  case.compare("out/batch_loss", joint_nll(slots.log_z_BT, open_slots(jnp.asarray(given[0]), given[2]), slots.target_BM,
                                           jnp.asarray(data.number_B)), PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)


def packed_legacy(case):
  """ilm_packed_legacy: several segments in a block, dropped tokens in place, one softmax (spec 2.3)."""
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
  slots, missing, weights = np.zeros((B, M), np.int32), np.zeros((B, M), np.int32), np.zeros((B, M), np.float32)
  for b in range(B):
    at = np.flatnonzero(drop_BT[b])
    left = np.maximum.accumulate(np.where(drop_BT[b], -1, np.arange(T)))
    in_segment = np.bincount(segment_BT[b][at], minlength=T + 1)
    slots[b, :len(at)], missing[b, :len(at)] = left[at], ids_BT[b][at]
    weights[b, :len(at)] = 1 / in_segment[segment_BT[b][at]]
  tokens_BT = np.where(drop_BT, c["mask"], ids_BT)
  given = segment_BT, positions_BT

  def loss(params):
    slots_ = model.apply({"params": params}, tokens_BT, slots, missing, *given, key_segment_ids_BT=keys_BT, method="score")
    loss_B = packed_nll(slots_.log_z_BT, jnp.asarray(open_BT), slots_.target_BM, jnp.asarray(weights))
    return jnp.mean(loss_B), loss_B

  (value, loss_B), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits, _ = jax.jit(model.apply)({"params": params}, tokens_BT, *given, key_segment_ids_BT=keys_BT)
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
    case.require(f"out/{j}/reinserted", all(np.array_equal(reinsert(r), w) for r, w in zip(data.rows, whole)),
                 "survivors and missing tokens do not make the sequence again")
    case.compare(f"out/{j}/ilm_target_counts", data.official_counts(c["full_vocab"]))
    case.compare(f"out/{j}/compact_ids", data.tokens)
    case.compare(f"out/{j}/compact_counts", data.counts(c["full_vocab"]))
    case.compare(f"out/{j}/compact_len", data.length_B)
    per_slot_BL = data.counts(c["full_vocab"]).sum(-1)
    if f"out/{j}/n_drops_per_slot" in case:
      case.compare(f"out/{j}/n_drops_per_slot", per_slot_BL)
    case.compare(f"out/{j}/it_slot_counts", data.back(per_slot_BL) * data.visible_BT)
    # The release also writes EOS at places where no survivor is; they are hidden from its loss.
    case.compare(f"out/{j}/it_target_counts", it.official_counts(c["full_vocab"]),
                 where=data.visible_BT & (np.arange(data.visible_BT.shape[1]) > 0)[None])


def _inserter(case, cfg, **more):
  c = case.config
  return generation.Inserter(cfg, suppressed=tuple(c.get("suppressed", ())) or more.pop("suppressed"), pad=c["pad"],
                             max_len=c["max_len_tokens"], max_steps=c["max_steps"], stop_threshold=c["thr"],
                             **{k: v for k, v in more.items() if k != "suppressed"})


def _prompts(case):
  inside_BT = np.asarray(case["in/attention_mask"], bool)
  rows = [ids[inside] for ids, inside in zip(case["in/input_ids"], inside_BT)]
  blocked = [row[inside] for row, inside in zip(case["in/constraint"], inside_BT)] if "in/constraint" in case else None
  return rows, blocked


def _fit(x_BL, width: int, fill: int):
  x_BL = np.asarray(x_BL)[:, :width]
  return np.pad(x_BL, ((0, 0), (0, width - x_BL.shape[1])), constant_values=fill)


def greedy(case):
  """ilm_greedy: every intermediate sequence, step by step; then the while loop's result."""
  c = case.config
  cfg = ilm.read_transformer(c, stop_head=True)
  _, params = load(case, cfg, ilm.transformer_table(cfg))
  top1 = generation.Filter(top_k=1)
  sampling = generation.InsertionSampling(top1, top1 if c["two_stage"] else None)
  inserter = _inserter(case, cfg, sampling=sampling, force_first=c.get("force", False))
  prompts, blocked = _prompts(case)
  num_steps, _, width = case["out/sequences"].shape
  key, steps = jax.random.key(0), []
  start = rows = inserter.start(prompts, blocked, buffer=width)
  for _ in range(num_steps):
    rows, step = generation.one_step(params, rows, key, inserter)
    steps.append((rows.tokens_BL, rows.length_B, *step))
  sequences_, lengths, stop, inserted, slot, token = (np.stack([np.asarray(s[i]) for s in steps]) for i in range(6))
  close = np.abs(case["out/stop_prob"] - c["thr"]).min()
  case.require("out/stop_prob/margin", close > CERTAIN, f"a probability is {close:.1e} from the threshold: undecidable")
  case.compare("out/stop_prob", stop, LOGITS)
  for key_, got in (("inserted", inserted), ("sequences", sequences_), ("lengths", lengths)):
    case.compare(f"out/{key_}", got)
  case.compare("out/slot", np.where(inserted, slot, -1), where=inserted)
  case.compare("out/token", np.where(inserted, token, -1), where=inserted)
  final = generation.Inserter.generate(inserter, params, start, key)
  case.compare("out/final_ids", _fit(final.tokens_BL, case["out/final_ids"].shape[1], c["pad"]))


def sampling_ops(case):
  """sampling_ops: slot and token from given uniform noise, for every rule in the file."""
  c, logits_BLV = case.config, jnp.asarray(case["in/logits"])
  k, p = generation.Filter(top_k=c["k"]), generation.Filter(top_p=c["p"])
  first, plain = generation.Filter(top_k=1), generation.Filter()
  rules = {"joint_sample": (None, plain), "joint_topk": (None, k), "joint_topp": (None, p), "pos_top1_tok_topp": (first, p),
           "pos_topp_tok_topk": (p, k), "pos_topk_tok_topp": (k, p), "pos_sample_tok_sample": (plain, plain),
           "joint_top1": (None, first), "pos_top1_tok_top1": (first, first), "pos_topp_tok_topp": (p, p),
           "pos_topk_tok_topk": (k, k), "pos_top1_tok_topk": (first, k), "pos_topk_tok_top1": (k, first)}
  for name in sorted({key.split("/")[1] for key in case.arrays if key.startswith("out/")}):
    if name not in rules:
      case.require(f"out/{name}/slot", False, f"no rule {name!r}; known: {', '.join(rules)}")
      continue
    slot, token = rules[name]
    given = lambda stage, name=name: lambda shape: jnp.asarray(case[f"in/{name}/u{stage}"]).reshape(shape)
    if slot is None:
      slot_B, token_B = generation.choose_joint(logits_BLV, token, given(0))
    else:
      row = lambda slot_B: logits_BLV[jnp.arange(len(slot_B)), slot_B]
      slot_B, token_B = generation.choose_in_stages(jax.nn.logsumexp(logits_BLV, axis=-1), row,
                                                    generation.InsertionSampling(token, slot), given(0), given(1))
    case.compare(f"out/{name}/slot", slot_B)
    case.compare(f"out/{name}/token", token_B)


def it_loss(case):
  """it_loss: the Insertion Transformer's logits, loss of every slot, and gradients."""
  c, data = case.config, compacted(case, case.config["eos"])
  cfg = ilm.read_transformer(c)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  batch = data.batch
  objective = InsertionTransformer(eos=c["eos"], eos_weight=c["eos_weight"])

  def loss(params):
    pair, _ = objective.loss(model, params, batch, None, {}, train=True)
    return pair.sum / pair.weight

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  given = batch["segment_ids"], batch["positions"]
  logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"], *given)
  slots = jax.jit(lambda p: model.apply({"params": p}, batch["tokens"], batch["slots"], batch["missing"], *given,
                                        method="score"))(params)
  nll_BT = slot_nll(slots.log_z_BT, slots.target_BM, jnp.asarray(batch["slots"]), jnp.asarray(batch["missing"]),
                    jnp.asarray(data.number_B), eos=c["eos"], eos_weight=c["eos_weight"])
  shown_BT = data.visible_BT & (np.arange(data.visible_BT.shape[1]) > 0)[None]
  case.compare("in/target_counts", data.official_counts(c["full_vocab"]), where=shown_BT)
  case.compare("out/logits", data.back(logits), LOGITS, where=data.visible_BT)
  case.compare("out/nlls", data.back(nll_BT)[shown_BT], PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)


def it_greedy(case):
  """it_greedy: top-1 decoding; a row is done when EOS is the best of all its slots."""
  c = case.config
  cfg = ilm.read_transformer(c)
  _, params = load(case, cfg, ilm.transformer_table(cfg))
  inserter = _inserter(case, cfg, eos=c["eos"], suppressed=(c["mask"], c["pad"], c["cls"], c["bos"]))
  prompts, blocked = _prompts(case)
  num_steps, _, width = case["out/sequences"].shape
  rows, steps = inserter.start(prompts, blocked, buffer=width), []
  for _ in range(num_steps):
    rows, step = generation.one_step(params, rows, jax.random.key(0), inserter)
    steps.append((rows.tokens_BL, rows.length_B, rows.alive_B))
  for i, name in enumerate(("sequences", "lengths", "predict")):
    case.compare(f"out/{name}", np.stack([np.asarray(s[i]) for s in steps]))


def arlm(case):
  """arlm: the causal baseline with left or right padding, and greedy decoding through its cache."""
  c = case.config
  cfg = ilm.read_transformer(c, causal=True)
  table = ilm.transformer_table(cfg)
  model, params = load(case, cfg, table)
  ids_BT, inside_BT = case["in/input_ids"], np.asarray(case["in/attention_mask"], bool)
  segment_ids_BT = inside_BT.astype(np.int32)
  positions_BT = ((np.cumsum(inside_BT, axis=1) - 1) * inside_BT).astype(np.int32)
  targets_BT = np.concatenate([ids_BT[:, 1:], ids_BT[:, -1:]], axis=1)
  types_BT = np.concatenate([case["in/token_type_ids"][:, 1:], np.ones_like(ids_BT[:, :1])], axis=1)
  counted_BT = (types_BT > 1) & (targets_BT != c["pad"])

  def loss(params):
    score = model.apply({"params": params}, ids_BT, targets_BT, segment_ids_BT, positions_BT, method="score")
    return -jnp.sum(score.log_prob_BT * counted_BT) / counted_BT.sum(), score.log_prob_BT

  (value, log_prob_BT), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits = jax.jit(model.apply)({"params": params}, ids_BT, segment_ids_BT, positions_BT)
  case.compare("out/positions", positions_BT)
  case.compare("out/logits", logits, LOGITS, where=inside_BT)
  case.compare("out/nlls", -np.asarray(log_prob_BT)[counted_BT], PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)

  prompt_BT, width = case["in/prompt_ids"], case["out/greedy_ids"].shape[1]
  extend = jax.jit(lambda t, s, valid: model.apply({"params": params}, t, s, valid, method="extend"))
  logits, state = extend(prompt_BT, cfg.init_state(len(prompt_BT), width), case["in/prompt_mask"].astype(np.int32))
  found, ended_B = prompt_BT, np.zeros(len(prompt_BT), bool)
  while found.shape[1] < width:
    token_B = np.where(ended_B, c["pad"], np.argmax(np.asarray(logits[:, -1]), axis=-1)).astype(np.int32)
    ended_B |= token_B == c["eos"]
    found = np.concatenate([found, token_B[:, None]], axis=1)
    logits, state = extend(token_B[:, None], state, np.ones((len(found), 1), np.int32))
  case.compare("out/greedy_ids", found)


def mdlm(case):
  """mdlm: schedule, network, loss at fixed time and mask, and the whole sampler with its noise."""
  c = case.config
  cfg = ilm.read_diffusion(c)
  table = ilm.diffusion_table(cfg)
  model, params = load(case, cfg, table)
  ids_BT, drop_BT = case["in/input_ids"], np.asarray(case["in/drop"], bool)
  inside_BT = np.asarray(case["in/attention_mask"], bool)
  keys_BT = None if c["loss_on_padding"] else inside_BT
  masked_BT = drop_BT if c["loss_on_padding"] else drop_BT & inside_BT
  t_B, x_BT = jnp.asarray(case["in/t"]), np.where(drop_BT, c["mask"], ids_BT)
  t_T = jnp.asarray(case["in/schedule_t"])
  case.compare("out/schedule_noise_rate", masked_diffusion.noise_rate(t_T), PER_TOKEN)
  case.compare("out/schedule_total_noise", masked_diffusion.total_noise(t_T), PER_TOKEN)
  sigma_B = masked_diffusion.total_noise(t_B)
  case.compare("in/noise_rate", masked_diffusion.noise_rate(t_B), PER_TOKEN)
  case.compare("in/total_noise", sigma_B, PER_TOKEN)

  def loss(params):
    log_prob_BT, _ = model.apply({"params": params}, x_BT, ids_BT, sigma_B, keys_BT, method="score")
    pair = masked_diffusion.masked_nll(log_prob_BT, jnp.asarray(masked_BT, jnp.float32), t_B)
    return pair.sum / pair.weight, log_prob_BT

  (value, log_prob_BT), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  logits, sown = jax.jit(lambda p: model.apply({"params": p}, x_BT, sigma_B, keys_BT, mutable=["intermediates"]))(params)
  for i, h_BTD in enumerate(np.asarray(sown["intermediates"]["blocks"]["hidden"][0])):
    case.compare(f"out/hidden_{i}", h_BTD, LOGITS)
  case.compare("out/logits", logits, LOGITS)
  weight_B = np.asarray(masked_diffusion.noise_rate(t_B) / jnp.expm1(sigma_B))
  case.compare("out/nlls", (-np.asarray(log_prob_BT) * weight_B[:, None])[masked_BT & inside_BT], PER_TOKEN)
  case.compare("out/loss", value, LOSS)
  compare_gradients(case, table, grads)

  dt = diffusion_sampler.step_size(c["max_steps"])
  x_BT, seen_BT, times, found = jnp.asarray(case["in/sample_init"]), np.asarray(case["in/sample_mask"], bool), [], []
  forward = jax.jit(lambda x, t: model.apply({"params": params}, x, masked_diffusion.total_noise(t), seen_BT))
  for i in range(c["max_steps"]):
    last = i == c["max_steps"] - 1
    t_B = jnp.full(len(x_BT), (1 - dt) if last else 1 - i * dt)
    logits_BTV = forward(x_BT, t_B)
    x_BT = (diffusion_sampler.finish(logits_BTV, x_BT, c["mask"]) if last else diffusion_sampler.ancestral(
        logits_BTV, x_BT, t_B, dt, c["mask"], jnp.asarray(case["in/sample_u"][i])))
    times.append(np.asarray(t_B))
    found.append(np.asarray(x_BT))
  case.compare("out/sample_t", np.stack(times), PER_TOKEN)
  case.compare("out/sample_x", np.stack(found))


def star_graphs(case):
  """star_graphs: the stored graphs belong to our family, have our solution, and are encoded and collated as we do it.

  Our generator draws in another order, so the graphs themselves are judged by their family's rules.
  """
  c = case.config
  family = _family(c["generator"], c["vocab_size"])
  ids = stars.Ids.after(c["vocab_size"])
  for name in ("cls", "bos", "eos", "unk", "pad", "mask"):
    case.require(f"config/{name}", getattr(ids, name) == c[name], f"{getattr(ids, name)}, wanted {c[name]}")
  case.require("config/block_size", family.seq_len == c["block_size"], f"{family.seq_len}, wanted {c['block_size']}")
  graphs, complaints = [], []
  for edges, count, path, length in zip(*(case[f"out/{k}"] for k in ("edges", "num_edges", "path", "path_len"))):
    graphs.append(stars.Graph(edges[:count], path[:length]))
    try:
      family.check(graphs[-1])
    except ValueError as error:
      complaints.append(str(error))
  case.require("out/edges", not complaints, "; ".join(complaints[:2]))
  solved = [stars.solve(g.edges, s, t) for g, s, t in zip(graphs, case["out/source"], case["out/goal"])]
  pad = lambda rows, width: np.stack([np.concatenate([r, np.full(width - len(r), -1)]) for r in rows])
  case.compare("out/path", pad(solved, case["out/path"].shape[1]))
  case.compare("out/path_len", np.asarray([len(s) for s in solved]))
  case.compare("out/num_edges", np.asarray([np.sum(e[:, 0] >= 0) for e in case["out/edges"]]))
  case.compare("out/source", np.asarray([s[0] for s in solved]))
  case.compare("out/goal", np.asarray([s[-1] for s in solved]))
  for name, form in (("ilm", "insertion"), ("arlm", "causal"), ("mdlm", "masked_diffusion")):
    tokens, types = zip(*(stars.encode(g, ids, form) for g in graphs))
    case.compare(f"out/{name}_ids", pad(tokens, case[f"out/{name}_ids"].shape[1]))
    case.compare(f"out/{name}_types", pad(types, case[f"out/{name}_types"].shape[1]))

  T, drop_BT = case["out/batch/input_ids"].shape[1], np.asarray(case["out/batch/drop"], bool)
  encoded = [stars.encode(g, ids, "insertion") for g in graphs[:len(drop_BT)]]
  fill = lambda rows, value: np.stack([np.concatenate([r, np.full(T - len(r), value)]) for r in rows])
  tokens_BT, types_BT = fill([t for t, _ in encoded], ids.pad), fill([t for _, t in encoded], 2)
  inside_BT = np.arange(T)[None] < np.asarray([len(t) for t, _ in encoded])[:, None]
  case.compare("out/batch/input_ids", tokens_BT)
  case.compare("out/batch/attention_mask", inside_BT)
  case.compare("out/batch/token_type_ids", types_BT)
  case.compare("out/batch/constraint", np.stack([blocked_prefix(t) for t in types_BT]))
  case.require("out/batch/drop", not (drop_BT & ~(inside_BT & (types_BT == 2))).any(), "a token that is given was dropped")
  case.compare("out/batch/target_counts",
               Compacted(tokens_BT, inside_BT, drop_BT, ids.pad).official_counts(c["vocab_size"] + 8))


def _family(generator: str, num_nodes: int) -> stars.StarFamily:
  field = lambda name: int(re.search(rf"(?:^|_){name}=(\d+)", generator).group(1))
  if generator.startswith("simple"):
    return stars.StarFamily(field("degree"), field("pathlength"), field("pathlength"), num_nodes)
  return stars.StarFamily(field("degree"), field("min_pathlength"), field("max_pathlength"), num_nodes,
                          field("min_plan_length"))


def metrics(case):
  """metrics: exact match, Hamming accuracy, zebra sets, removal of tokens."""
  c, found, wanted = case.config, case["in/pred"], case["in/target"]
  case.compare("out/exact_match", sequences.exact_match(found, wanted, case["in/pred_length"]), LOSS)
  case.compare("out/hamming", sequences.token_accuracy(found, wanted, case["in/pred_mask"]), LOSS)
  iou, equal = sequences.set_scores(c["zebra_pred"], c["zebra_target"])
  case.compare("out/zebra_iou", iou, LOSS)
  case.compare("out/zebra_acc", equal, LOSS)
  case.compare("out/removed_ids", sequences.remove_tokens(case["in/remove_ids"], c["remove"], c["pad"]))
