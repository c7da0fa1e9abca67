"""Golden checks of insertion models that write: every step of greedy decoding, and each rule for
slot and token.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.generation import insertion as generation
from jaxlm.interop import ilm
from jaxlm.interop.golden.ilm import LOGITS, load

CERTAIN = 1e-4  # a stop probability this close to the threshold would depend on rounding


def _inserter(case, cfg, **more):
  c = case.config
  return generation.Inserter(
    cfg,
    suppressed=tuple(c.get("suppressed", ())) or more.pop("suppressed"),
    pad=c["pad"],
    max_len=c["max_len_tokens"],
    max_steps=c["max_steps"],
    stop_threshold=c["thr"],
    **{k: v for k, v in more.items() if k != "suppressed"},
  )


def _prompts(case):
  inside_BT = np.asarray(case["in/attention_mask"], bool)
  rows = [ids[inside] for ids, inside in zip(case["in/input_ids"], inside_BT)]
  blocked = (
    [row[inside] for row, inside in zip(case["in/constraint"], inside_BT)]
    if "in/constraint" in case
    else None
  )
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
  sequences_, lengths, stop, inserted, slot, token = (
    np.stack([np.asarray(s[i]) for s in steps]) for i in range(6)
  )
  close = np.abs((case["out/stop_prob"] if case.has("out/stop_prob") else stop) - c["thr"]).min()
  case.require(
    "out/stop_prob/margin",
    close > CERTAIN,
    f"a probability is {close:.1e} from the threshold: undecidable",
  )
  case.compare("out/stop_prob", stop, LOGITS)
  for key_, got in (("inserted", inserted), ("sequences", sequences_), ("lengths", lengths)):
    case.compare(f"out/{key_}", got)
  case.compare("out/slot", np.where(inserted, slot, -1), where=inserted)
  case.compare("out/token", np.where(inserted, token, -1), where=inserted)
  if not case.has("out/final_ids"):
    return
  final = generation.Inserter.generate(inserter, params, start, key)
  case.compare("out/final_ids", _fit(final.tokens_BL, case["out/final_ids"].shape[1], c["pad"]))


def sampling_ops(case):
  """sampling_ops: slot and token from given uniform noise, for every rule in the file."""
  c, logits_BLV = case.config, jnp.asarray(case["in/logits"])
  k, p = generation.Filter(top_k=c["k"]), generation.Filter(top_p=c["p"])
  first, plain = generation.Filter(top_k=1), generation.Filter()
  rules = {
    "joint_sample": (None, plain),
    "joint_topk": (None, k),
    "joint_topp": (None, p),
    "pos_top1_tok_topp": (first, p),
    "pos_topp_tok_topk": (p, k),
    "pos_topk_tok_topp": (k, p),
    "pos_sample_tok_sample": (plain, plain),
    "joint_top1": (None, first),
    "pos_top1_tok_top1": (first, first),
    "pos_topp_tok_topp": (p, p),
    "pos_topk_tok_topk": (k, k),
    "pos_top1_tok_topk": (first, k),
    "pos_topk_tok_top1": (k, first),
  }
  for name in sorted({key.split("/")[1] for key in case.arrays if key.startswith("out/")}):
    if name not in rules:
      case.require(f"out/{name}/slot", False, f"no rule {name!r}; known: {', '.join(rules)}")
      continue
    slot, token = rules[name]

    def given(stage, name=name):
      return lambda shape: jnp.asarray(case[f"in/{name}/u{stage}"]).reshape(shape)

    if slot is None:
      slot_B, token_B = generation.choose_joint(logits_BLV, token, given(0))
    else:

      def row(slot_B):
        return logits_BLV[jnp.arange(len(slot_B)), slot_B]

      slot_B, token_B = generation.choose_in_stages(
        jax.nn.logsumexp(logits_BLV, axis=-1),
        row,
        generation.InsertionSampling(token, slot),
        given(0),
        given(1),
      )
    case.compare(f"out/{name}/slot", slot_B)
    case.compare(f"out/{name}/token", token_B)


def it_greedy(case):
  """it_greedy: top-1 decoding; a row is done when EOS is the best of all its slots."""
  c = case.config
  cfg = ilm.read_transformer(c)
  _, params = load(case, cfg, ilm.transformer_table(cfg))
  inserter = _inserter(
    case, cfg, eos=c["eos"], suppressed=(c["mask"], c["pad"], c["cls"], c["bos"])
  )
  prompts, blocked = _prompts(case)
  num_steps, _, width = case["out/sequences"].shape
  rows, steps = inserter.start(prompts, blocked, buffer=width), []
  for _ in range(num_steps):
    rows, step = generation.one_step(params, rows, jax.random.key(0), inserter)
    steps.append((rows.tokens_BL, rows.length_B, rows.alive_B))
  for i, name in enumerate(("sequences", "lengths", "predict")):
    case.compare(f"out/{name}", np.stack([np.asarray(s[i]) for s in steps]))
