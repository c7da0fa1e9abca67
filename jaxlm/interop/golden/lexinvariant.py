"""Golden checks of lexinvariant models, through the decoder with the embedding that users
configure.

Axes: B batch, T time, V vocab, D d_model. Tolerances: README of the golden folder.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data import ciphers
from jaxlm.data.bigram import Bigram
from jaxlm.data.lexinvariant_tasks import lookup_prompts, permutation_prompts
from jaxlm.evaluation.bayes_mixture import mixture
from jaxlm.interop.golden.case import Tolerance
from jaxlm.kernels.attention.bias import relative_bucket
from jaxlm.kernels.random_head import bits, keyed_rows
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.lexinvariant import Lexicon, LexinvariantConfig, first_occurrence
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.positions.t5 import T5Bias
from jaxlm.models.decoder import DecoderConfig

OUTPUT = Tolerance(rtol_max=2e-5)
GRADIENT = Tolerance(rtol_max=1e-4)
LOSS = Tolerance(atol=1e-5)
ROWS = Tolerance(atol=2e-5)
FLOAT64 = Tolerance(atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def decoder_of(config, embedding: LexinvariantConfig) -> DecoderConfig:
  positions = {
    "t5": lambda: T5Bias(config["num_buckets"], config["max_distance"]),
    "rope": lambda: RoPE(float(config.get("rope_base", 10000.0))),
    "nope": NoPosition,
  }
  if config["pos"] not in positions:
    raise ConfigError(f"pos = {config['pos']!r}: known are {', '.join(positions)}")
  return DecoderConfig(
    vocab_size=config["vocab_size"],
    d_model=config["d_model"],
    num_layers=config["n_layer"],
    mixer=AttentionConfig(config["n_head"], head_dim=config["head_dim"]),
    position=positions[config["pos"]](),
    mlp=MLPConfig(config["d_ff"], config["act"]),
    norm=RMSNormConfig(config["norm_eps"]),
    embedding=embedding,
  )


#: Stored name -> ours. Kernels of attention are stored (D, N H).
LAYER = {
  "norm_1.scale": ("norm", "scale"),
  "norm_2.scale": ("mlp_norm", "scale"),
  "wq": ("mixer", "w_q"),
  "wk": ("mixer", "w_k"),
  "wv": ("mixer", "w_v"),
  "wo": ("mixer", "w_o"),
  "w1": ("mlp", "w_in"),
  "w2": ("mlp", "w_out"),
}
MODEL = {
  "final_norm.scale": ("final_norm", "scale"),
  "rel_bias": ("position", "relative_bias"),
  "out_proj": ("embed", "out_proj"),
  "logit_scale": ("embed", "logit_scale"),
  "embed": ("embed", "embedding"),
}


def model_params(cfg: DecoderConfig, stored) -> dict:
  N, H = cfg.mixer.num_heads, cfg.mixer.head_dim
  shape = {"w_q": (-1, N, H), "w_k": (-1, N, H), "w_v": (-1, N, H), "w_o": (N, H, cfg.d_model)}
  params = {"blocks": {}}
  for theirs, (part, name) in LAYER.items():
    stack = np.stack(
      [np.asarray(stored[f"h.{l}.{theirs}"], np.float32) for l in range(cfg.num_layers)]
    )
    if name in shape:
      stack = stack.reshape(cfg.num_layers, *shape[name])
    params["blocks"].setdefault(part, {})[name] = jnp.asarray(stack)
  for theirs, (part, name) in MODEL.items():
    if theirs in stored:
      params.setdefault(part, {})[name] = jnp.asarray(stored[theirs], jnp.float32)
  return params


def compare_gradients(case, grads) -> None:
  for key in case.group("grad"):
    if key.startswith("h."):
      _, layer, theirs = key.split(".", 2)
      part, name = LAYER[theirs]
      got = grads["blocks"][part][name][int(layer)]
    else:
      part, name = MODEL[key]
      got = grads[part][name]
    case.compare(f"grad/{key}", np.asarray(got).reshape(case[f"grad/{key}"].shape), GRADIENT)


class Model:
  """A decoder with the parameters of a case."""

  def __init__(self, case, **embedding):
    stored = case.group("param")
    self.cfg = decoder_of(
      case.config,
      LexinvariantConfig(
        out_proj="out_proj" in stored, learned_scale="logit_scale" in stored, **embedding
      ),
    )
    self.model, self.params = self.cfg.build(), model_params(self.cfg, stored)

  def losses(self, params, ids_BT, targets_BT, valid_BT, weight_BT, lexicon):
    """(mean nll, (nll_BT, Score, sown)). Positions count from the left edge, padding included."""
    ids_BT, segments = jnp.asarray(ids_BT), jnp.asarray(valid_BT, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None], ids_BT.shape)
    score, sown = self.model.apply(
      {"params": params},
      ids_BT,
      jnp.asarray(targets_BT),
      segments,
      positions,
      lexicon,
      method="score",
      mutable=["intermediates"],
    )
    weight_BT = jnp.asarray(weight_BT)
    nll_BT = jnp.where(weight_BT > 0, -score.log_prob_BT * weight_BT, 0.0)
    return jnp.sum(nll_BT) / jnp.sum(weight_BT), (nll_BT, score, sown["intermediates"])

  def run(self, *args):
    return jax.jit(self.losses)(self.params, *args)

  def gradients(self, *args):
    return jax.jit(jax.value_and_grad(self.losses, has_aux=True))(self.params, *args)

  def logits(self, ids_BT, valid_BT, lexicon):
    """Times valid."""
    segments = jnp.asarray(valid_BT, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None], ids_BT.shape)
    out = jax.jit(
      lambda p: self.model.apply({"params": p}, jnp.asarray(ids_BT), segments, positions, lexicon)
    )
    return np.asarray(out(self.params)) * np.asarray(valid_BT, np.float32)[..., None]


def next_of(ids_BT):
  """Targets ids[t + 1]; the last, which no weight counts, is 0."""
  return np.concatenate([ids_BT[:, 1:], np.zeros_like(ids_BT[:, :1])], axis=1)


def compare_local(case, ids_BT, valid_BT) -> None:
  loc_BT, first_BT = first_occurrence(jnp.asarray(ids_BT), jnp.asarray(valid_BT, jnp.int32))
  case.compare("in/local_ids", loc_BT)
  case.compare("in/n_unique", jnp.sum(first_BT, axis=1))


def lm_given_tables(case):
  """Tables given per sequence; with table rows moved along, permuted ids change nothing, without,
  they do.
  """
  ids_BT, valid_BT, weight_BT = case["in/ids"], case["in/valid"], case["in/loss_weight"]
  model, lexicon = Model(case), Lexicon(table_BVD=jnp.asarray(case["in/table"]))
  (loss, (nll_BT, _, sown)), grads = model.gradients(
    ids_BT, next_of(ids_BT), valid_BT, weight_BT, lexicon
  )
  case.compare("out/logits", model.logits(ids_BT, valid_BT, lexicon), OUTPUT)
  case.compare("out/h_out", np.asarray(sown["embed"]["h_out"][0]) * valid_BT[..., None], OUTPUT)
  for l, h_BTD in enumerate(sown["blocks"]["resid"][0]):
    case.compare(f"out/hidden.{l}", np.asarray(h_BTD) * valid_BT[..., None], OUTPUT)
  case.compare("out/nll", nll_BT, OUTPUT)
  case.compare("out/loss", loss, LOSS)
  compare_gradients(case, grads)

  permuted = case["in/ids_permuted"]
  moved = Lexicon(table_BVD=jnp.asarray(ciphers.move_rows(case["in/table"], case["in/perm"])))
  case.compare(
    "out/loss_permuted_pair",
    model.run(permuted, next_of(permuted), valid_BT, weight_BT, moved)[0],
    LOSS,
  )
  same = model.run(permuted, next_of(permuted), valid_BT, weight_BT, lexicon)[0]
  case.compare("out/loss_permuted_ids_same_table", same, LOSS)
  compare_local(case, ids_BT, valid_BT)


def lm_keyed(case):
  """Tables from seeds, through the streaming softmax; and its analytic remainder."""
  ids_BT, valid_BT, weight_BT = case["in/ids"], case["in/valid"], case["in/loss_weight"]
  lexicon = Lexicon(seed_B2=jnp.asarray(case["in/seeds"]))
  arguments = ids_BT, next_of(ids_BT), valid_BT, weight_BT, lexicon
  # Several stretches, the last one partly outside the vocabulary.
  (loss, (nll_BT, score, sown)), grads = Model(
    case, chunk=case.config["vocab_size"] // 3
  ).gradients(*arguments)
  case.compare("out/h_out", np.asarray(sown["embed"]["h_out"][0]) * valid_BT[..., None], OUTPUT)
  case.compare("out/log_z", score.log_z_BT, OUTPUT, where=valid_BT > 0)
  case.compare("out/target_logit", score.log_prob_BT + score.log_z_BT, OUTPUT, where=weight_BT > 0)
  case.compare("out/nll", nll_BT, OUTPUT)
  case.compare("out/loss", loss, LOSS)
  compare_gradients(case, grads)
  analytic = Model(case, absent="analytic").run(*arguments)[1][1]
  case.compare("out/log_z_analytic_remainder", analytic.log_z_BT, OUTPUT, where=valid_BT > 0)
  compare_local(case, ids_BT, valid_BT)


def semi_lexinvariant(case):
  """Given which rows are random, and those rows."""
  ids_BT, ones = case["in/ids"], np.ones(case["in/ids"].shape, np.float32)
  model = Model(case, random_prob=case.config["random_prob"])
  lexicon = Lexicon(
    table_BVD=jnp.asarray(case["in/noise"]),
    random_BV=jnp.asarray(case["in/random_mask"]),
    train=True,
  )
  (loss, (nll_BT, _, _)), grads = model.gradients(ids_BT, case["in/targets"], ones, ones, lexicon)
  case.compare("out/logits", model.logits(ids_BT, ones, lexicon), OUTPUT)
  case.compare("out/nll", nll_BT, OUTPUT)
  case.compare("out/loss", loss, LOSS)
  compare_gradients(case, grads)
  always = case["in/random_mask"].all(axis=0)
  got = np.asarray(grads["embed"]["embedding"])
  case.require(
    "grad/embed", not got[always].any(), "a row that is random in every sequence has a gradient"
  )


def cipher(case):
  """A text and its ciphers; with the table's rows moved along, both cost the same."""
  plain, perm = case["in/plain_ids"], case["in/perm_full"]
  coded = ciphers.encipher(plain, perm)
  case.compare("out/cipher_full", coded)
  case.compare("out/cipher_partial", ciphers.encipher(plain, case["in/perm_partial"]))
  case.compare("out/inverse_full", ciphers.inverse(perm))

  def local(ids):
    return first_occurrence(jnp.asarray(ids)[None], jnp.ones((1, len(ids)), jnp.int32))[0][0]

  case.compare("out/local_ids", local(plain))
  case.require(
    "out/local_ids", np.array_equal(local(plain), local(coded)), "a cipher changed the local ids"
  )

  case.compare("in/table_cipher", ciphers.move_rows(case["in/table_plain"], perm))
  model, ones = Model(case), np.ones((1, len(plain)), np.float32)
  weight = ones.copy()
  weight[:, -1] = case.has("out/nll_plain") and case["out/nll_plain"][:, -1] != 0
  for name, ids in (("plain", plain), ("cipher", coded)):
    table = Lexicon(table_BVD=jnp.asarray(case[f"in/table_{name}"])[None])
    nll_BT = model.run(ids[None], next_of(ids[None]), ones, weight, table)[1][0]
    case.compare(f"out/nll_{name}", nll_BT, OUTPUT)


# ---------------------------------------------------------------------------------------------------------------------
# Rows, the exact mixture, tasks, buckets


def rows(case):
  """Known answers, words and Gaussian rows of seeds and tokens."""
  seeds, tokens = jnp.asarray(case["in/seeds"]), jnp.asarray(case["in/tokens"])
  num_pairs = case["out/bits"].shape[2]
  words = bits(seeds[:, None, None], tokens[None, :, None], jnp.arange(num_pairs)[None, None])
  case.compare("out/bits", np.stack(words, axis=-1))
  case.compare("out/rows", keyed_rows(seeds[:, None], tokens[None], case.config["d_model"]), ROWS)
  pi = ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344))  # counter, key
  known = [((0, 0), (0, 0)), ((2**32 - 1,) * 2, (2**32 - 1,) * 2), pi]
  answers = [
    bits(jnp.asarray(key, jnp.uint32), jnp.uint32(c0), jnp.uint32(c1)) for (c0, c1), key in known
  ]
  case.compare("out/kat_zero_ones_pi", np.array(answers))


def exact_bayes_bigram(case):
  source = Bigram(case["in/initial"], case["in/transition"])
  got = mixture(source, case["in/cipher"])
  case.compare("in/cipher", ciphers.encipher(case["in/plain"], case["in/cipher_perm"]))
  true = source.log_prob(case["in/plain"])
  case.compare("out/logp_true", true, FLOAT64)
  case.compare("out/logp_mixture", got.log_prob_NT, FLOAT64)
  case.compare("out/mixture_predictive", got.predictive_NTV, FLOAT64)
  case.compare("out/posterior_true_perm", got.posterior_of(case["in/cipher_perm"]), FLOAT64)
  case.compare("out/decipher_marginal", got.decipher(), FLOAT64)
  bound = float(np.sum(np.log(np.arange(1, len(case["in/initial"]) + 1))))
  case.compare("out/log_d_factorial", bound, FLOAT64)
  regret = np.cumsum(true - got.log_prob_NT, axis=1).max()
  case.require(
    "out/log_d_factorial",
    regret <= bound + 1e-9,
    f"regret {regret:.6f} exceeds log d! = {bound:.6f}",
  )


def tasks(case):
  marks = {"arrow": case.config["arrow_id"], "separator": case.config["sep_id"]}
  lookup = lookup_prompts(
    case["in/lookup_keys"], case["in/lookup_values"], case["in/lookup_query"], **marks
  )
  case.compare("out/lookup_prompt", lookup.prompt)
  case.compare("out/lookup_answer", lookup.answer[:, 0])
  permuted = permutation_prompts(case["in/perm_strings"], case["in/perm_perm"], **marks)
  case.compare("out/perm_prompt", permuted.prompt)
  case.compare("out/perm_answer", permuted.answer)


def t5_buckets(case):
  distance = jnp.asarray(case["in/distance"])
  for key in case.group("out"):
    num_buckets, max_distance = map(int, key.split("_")[1:])
    case.compare(
      f"out/{key}",
      relative_bucket(
        -distance, num_buckets=num_buckets, max_distance=max_distance, bidirectional=False
      ),
    )
