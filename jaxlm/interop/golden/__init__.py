"""One module per system: the checks of its golden arrays, registered in CHECKS by (system, kind).

A check is a function `check(case)`: it reads inputs and weights with `case["in/x"]`, `case.group("param")`, runs
our code, and calls `case.compare("out/y", y, tolerance)` for each stored result. Results that are never compared
are counted as skipped, so a check must say why it leaves one out: `case.skip("out/z", "why")`. Read sizes and
options from `case.config`, never from the file's name: the same format comes with other sizes.
"""

CHECKS: dict[tuple[str, str], str] = {
    ("carope", "attention_block"): "jaxlm.interop.golden.carope:attention_block",
    ("carope", "language_model"): "jaxlm.interop.golden.carope:language_model",
    ("carope", "decode"): "jaxlm.interop.golden.carope:decode",
    ("carope", "rope_equivalence"): "jaxlm.interop.golden.carope:rope_equivalence",
    ("carope", "long_phase"): "jaxlm.interop.golden.carope:long_phase",
    ("carope", "neighbours"): "jaxlm.interop.golden.carope:neighbours",
    ("carope", "properties"): "jaxlm.interop.golden.carope:properties",
    ("decoder", "hf_gpt2"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_llama"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_mistral"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_qwen3"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_gemma2"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_gpt_neox"): "jaxlm.interop.golden.decoder:causal_lm",
    ("decoder", "hf_mamba2"): "jaxlm.interop.golden.decoder:mamba2_lm",
    ("hnet", "ssd_scan"): "jaxlm.interop.golden.hnet:ssd_scan",
    ("hnet", "mamba2"): "jaxlm.interop.golden.hnet:mamba2",
    ("hnet", "routing"): "jaxlm.interop.golden.hnet:routing",
    ("hnet", "chunk_dechunk"): "jaxlm.interop.golden.hnet:chunk_dechunk",
    ("hnet", "transformer_block"): "jaxlm.interop.golden.hnet:transformer_block",
    ("hnet", "isotropic"): "jaxlm.interop.golden.hnet:isotropic",
    ("hnet", "language_model"): "jaxlm.interop.golden.hnet:language_model",
    ("hnet", "inference"): "jaxlm.interop.golden.hnet:inference",
    ("hnet", "ratio_and_groups"): "jaxlm.interop.golden.hnet:ratio_and_groups",
    ("hnet", "train_steps"): "jaxlm.interop.golden.hnet:train_steps",
    ("lact", "newton_schulz"): "jaxlm.interop.golden.lact:newton_schulz_batches",
    ("lact", "op"): "jaxlm.interop.golden.lact:op",
    ("lact", "bidirectional_op"): "jaxlm.interop.golden.lact:bidirectional_op",
    ("lact", "nvs_op"): "jaxlm.interop.golden.lact:nvs_op",
    ("lact", "video_op"): "jaxlm.interop.golden.lact:video_op",
    ("lact", "layer"): "jaxlm.interop.golden.lact:layer",
    ("lact", "language_model"): "jaxlm.interop.golden.lact:language_model",
    ("lact", "nvs_model"): "jaxlm.interop.golden.lact:nvs_model",
    ("lexinvariant", "lm_given_tables"): "jaxlm.interop.golden.lexinvariant:lm_given_tables",
    ("lexinvariant", "lm_keyed"): "jaxlm.interop.golden.lexinvariant:lm_keyed",
    ("lexinvariant", "semi_lexinvariant"): "jaxlm.interop.golden.lexinvariant:semi_lexinvariant",
    ("lexinvariant", "cipher"): "jaxlm.interop.golden.lexinvariant:cipher",
    ("lexinvariant", "keyed_rows"): "jaxlm.interop.golden.lexinvariant:rows",
    ("lexinvariant", "exact_bayes_bigram"): "jaxlm.interop.golden.lexinvariant:exact_bayes_bigram",
    ("lexinvariant", "tasks"): "jaxlm.interop.golden.lexinvariant:tasks",
    ("lexinvariant", "t5_buckets"): "jaxlm.interop.golden.lexinvariant:t5_buckets",
    ("mixers", "gla"): "jaxlm.interop.golden.mixers:recurrence",
    ("mixers", "delta_rule"): "jaxlm.interop.golden.mixers:recurrence",
    ("mixers", "gated_delta_rule"): "jaxlm.interop.golden.mixers:recurrence",
}
