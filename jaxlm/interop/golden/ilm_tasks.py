"""Golden checks of the tasks of insertion models: star graphs and how answers are judged."""

import re

import numpy as np

from jaxlm.data.forms import framed
from jaxlm.data.forms.corruption import blocked_prefix
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.tasks import star_graphs as stars
from jaxlm.evaluation import sequences
from jaxlm.interop.golden.ilm import LOSS, Compacted


def star_graphs(case):
  """star_graphs: the stored graphs belong to our family, have our solution, and are encoded and
  collated as we do it.

  Our generator draws in another order, so the graphs themselves are judged by their family's rules.
  """
  c = case.config
  family = _family(c["generator"], c["vocab_size"])
  ids = SpecialTokens.after(c["vocab_size"], stars.NAMES)
  for name in ("cls", "bos", "eos", "unk", "pad", "mask"):
    case.require(
      f"config/{name}", getattr(ids, name) == c[name], f"{getattr(ids, name)}, wanted {c[name]}"
    )
  case.require(
    "config/block_size",
    family.seq_len == c["block_size"],
    f"{family.seq_len}, wanted {c['block_size']}",
  )
  graphs, complaints = [], []
  for edges, count, path, length in zip(
    *(case[f"out/{k}"] for k in ("edges", "num_edges", "path", "path_len"))
  ):
    graphs.append(stars.Graph(edges[:count], path[:length]))
    try:
      family.check(graphs[-1])
    except ValueError as error:
      complaints.append(str(error))
  case.require("out/edges", not complaints, "; ".join(complaints[:2]))
  solved = [
    stars.solve(g.edges, s, t) for g, s, t in zip(graphs, case["out/source"], case["out/goal"])
  ]

  def pad(rows, width):
    return np.stack([np.concatenate([r, np.full(width - len(r), -1)]) for r in rows])

  case.compare("out/path", pad(solved, case["out/path"].shape[1]))
  case.compare("out/path_len", np.asarray([len(s) for s in solved]))
  case.compare("out/num_edges", np.asarray([np.sum(e[:, 0] >= 0) for e in case["out/edges"]]))
  case.compare("out/source", np.asarray([s[0] for s in solved]))
  case.compare("out/goal", np.asarray([s[-1] for s in solved]))
  for name, form in (("ilm", "insertion"), ("arlm", "causal"), ("mdlm", "masked_diffusion")):
    tokens, types = zip(*(framed(*stars.problem(g), ids, form) for g in graphs))
    case.compare(f"out/{name}_ids", pad(tokens, case[f"out/{name}_ids"].shape[1]))
    case.compare(f"out/{name}_types", pad(types, case[f"out/{name}_types"].shape[1]))

  T, drop_BT = case["out/batch/input_ids"].shape[1], np.asarray(case["out/batch/drop"], bool)
  encoded = [framed(*stars.problem(g), ids, "insertion") for g in graphs[: len(drop_BT)]]

  def fill(rows, value):
    return np.stack([np.concatenate([r, np.full(T - len(r), value)]) for r in rows])

  tokens_BT, types_BT = fill([t for t, _ in encoded], ids.pad), fill([t for _, t in encoded], 2)
  inside_BT = np.arange(T)[None] < np.asarray([len(t) for t, _ in encoded])[:, None]
  case.compare("out/batch/input_ids", tokens_BT)
  case.compare("out/batch/attention_mask", inside_BT)
  case.compare("out/batch/token_type_ids", types_BT)
  case.compare("out/batch/constraint", np.stack([blocked_prefix(t) for t in types_BT]))
  case.require(
    "out/batch/drop",
    not (drop_BT & ~(inside_BT & (types_BT == 2))).any(),
    "a token that is given was dropped",
  )
  case.compare(
    "out/batch/target_counts",
    Compacted(tokens_BT, inside_BT, drop_BT, ids.pad).official_counts(c["vocab_size"] + 8),
  )


def _family(generator: str, num_nodes: int) -> stars.StarFamily:
  def field(name):
    return int(re.search(rf"(?:^|_){name}=(\d+)", generator).group(1))

  if generator.startswith("simple"):
    return stars.StarFamily(field("degree"), field("pathlength"), field("pathlength"), num_nodes)
  return stars.StarFamily(
    field("degree"),
    field("min_pathlength"),
    field("max_pathlength"),
    num_nodes,
    field("min_plan_length"),
  )


def metrics(case):
  """metrics: exact match, Hamming accuracy, zebra sets, removal of tokens."""
  c, found, wanted = case.config, case["in/pred"], case["in/target"]
  case.compare(
    "out/exact_match", sequences.exact_match(found, wanted, case["in/pred_length"]), LOSS
  )
  case.compare("out/hamming", sequences.token_accuracy(found, wanted, case["in/pred_mask"]), LOSS)
  iou, equal = sequences.set_scores(c["zebra_pred"], c["zebra_target"])
  case.compare("out/zebra_iou", iou, LOSS)
  case.compare("out/zebra_acc", equal, LOSS)
  case.compare(
    "out/removed_ids", sequences.remove_tokens(case["in/remove_ids"], c["remove"], c["pad"])
  )
