"""Every table and figure of the papers, with what a reader learns from it and what it costs.

`jaxlm reproduce --scale smoke --list` prints what is left. `minutes` are of one CPU core, for a row of
one seed at scale smoke, measured or taken from a row of the same size; `value` is ours. The rows
that decide a table's claims stand before the whole table.
"""

from jaxlm.experiments.reproduce.queue import Item, Script

ITEMS = [
  Item(
    "experiments/lact/figure5.py",
    minutes=1,
    value=5,
    rows=("swa", "lact_gd", "lact_momentum", "lact_muon"),
  ),
  Item(
    "experiments/lexinvariant/bayes.py",
    minutes=1.2,
    value=4,
    rows=("lexinvariant", "quarter", "early", "tables"),
  ),
  Item("experiments/ilm/table1.py", minutes=7, value=5, rows=("ilm", "arm")),
  Item(
    "experiments/mrt5/diagnostic.py",
    minutes=8,
    value=5,
    rows=("vowel_target", "vowel_random", "vowel_fixed"),
  ),
  Item("experiments/carope/controls.py", minutes=1, value=4, report="controls-{scale}"),
  Item("experiments/cross/matrix.py", minutes=1, value=3),
  Item("experiments/lact/figure5.py", minutes=1, value=2),
  Item(
    "experiments/lact/figure7.py",
    minutes=1,
    value=3,
    rows=("half_state", "state", "double_state"),
  ),
  Item("experiments/lact/figure7.py", minutes=1, value=1),
  Item("experiments/mrt5/runtime.py", minutes=1, value=1),
  Item("experiments/ilm/table1.py", minutes=10, value=3),
  Item("experiments/mrt5/diagnostic.py", minutes=8, value=3),
  Item("experiments/mrt5/controller.py", minutes=8, value=1),
  Item("experiments/mrt5/span_corruption.py", minutes=3, value=3),
  Item("experiments/mrt5/gate_placement.py", minutes=3, value=2),
  Item("experiments/carope/table1.py", minutes=1, value=3, report="{scale}"),
  Item("experiments/hnet/table2.py", minutes=5, value=4),
  Item("experiments/hnet/figure_ablation.py", minutes=5, value=3),
  Item("experiments/hnet/figure_encoder.py", minutes=5, value=2),
  Item("experiments/hnet/table3.py", minutes=1, value=2),
  Item("experiments/hnet/table_join.py", minutes=4, value=2),
  Item(
    "experiments/hnet/table4.py",
    minutes=5,
    value=2,
    needs="the Chinese text and the code of `jaxlm data prepare`",
  ),
  Item("experiments/hnet/table5.py", minutes=5, value=2, needs="a genome: `jaxlm data prepare`"),
  Item("experiments/lact/table_sniah.py", minutes=8, value=3, report="sniah-{scale}"),
  Item("experiments/lact/nvs_views.py", minutes=5, value=2, report="nvs-views-{scale}"),
  Item("experiments/lexinvariant/bayes.py", minutes=3, value=1, rows=("seen_or_new", "standard")),
  Item(
    "experiments/lexinvariant/figure_gap.py",
    minutes=5,
    value=3,
    needs="`jaxlm data prepare code-py`",
  ),
  Item("experiments/lexinvariant/cipher.py", minutes=30, value=4),
  Item(
    "experiments/lexinvariant/reasoning.py",
    minutes=5,
    value=2,
    needs="`jaxlm data prepare code-py`",
  ),
  Item(
    "experiments/lexinvariant/semi.py", minutes=6, value=2, needs="`jaxlm data prepare code-py`"
  ),
  Item("experiments/ilm/zebra.py", minutes=22, value=3),
  Item(
    "experiments/ilm/table2.py",
    minutes=4,
    value=2,
    report="table2_{scale}",
    needs="`jaxlm data prepare glosses`",
  ),
  Item(
    "experiments/ilm/table3.py",
    minutes=2,
    value=2,
    report="table3_{scale}",
    needs="`jaxlm data prepare glosses`",
  ),
  Item("experiments/decoding/batchspec.py", minutes=0.5, value=4),
  Item("experiments/decoding/rsd.py", minutes=0.5, value=4),
  Item("experiments/decoding/dyspec.py", minutes=0.7, value=3),
  Item("experiments/decoding/awrs.py", minutes=1, value=4),
  Item("experiments/decoding/setprompt.py", minutes=2, value=4),
  Item("experiments/decoding/bf.py", minutes=2, value=3),
  Item("experiments/decoding/urial.py", minutes=2, value=3),
  Item("experiments/decoding/utf.py", minutes=2, value=3),
  Item("experiments/decoding/cyclicreflex.py", minutes=1, value=2),
  Item("experiments/decoding/ctrldiff.py", minutes=3, value=4),
  Item("experiments/decoding/elasticcache.py", minutes=2, value=3),
  Item("experiments/decoding/skipdecode.py", minutes=2, value=4),
  Item(
    "experiments/mrt5/spelling.py",
    minutes=5,
    value=2,
    needs="`jaxlm data prepare spelling definitions`",
  ),
  # Interpretability
  Item("experiments/scansnap/dynamics.py", minutes=0.1, value=3),
  Item("experiments/icl_linear/weights.py", minutes=0.7, value=4),
  Item(
    "experiments/attnsink/sinks.py",
    minutes=2,
    value=5,
    rows=("softmax", "sigmoid", "sigmoid_sum", "k_bias"),
  ),
  Item(  # the other rows that a claim reads
    "experiments/attnsink/sinks.py",
    minutes=2,
    value=3,
    rows=("elu", "elu_sum", "kv_bias", "v_bias", "small_rate", "decay_10", "window"),
  ),
  Item("experiments/attnsink/sinks.py", minutes=2, value=1),
  Item("experiments/zerotuning/gamma.py", minutes=2, value=3),
  Item("experiments/activedormant/heads.py", minutes=3, value=4),
  Item("experiments/actattack/scaling.py", minutes=3, value=3),
  Item(
    "experiments/deconattn/mixers.py",
    minutes=3,
    value=4,
    rows=("standard", "approx_uniform", "static_uniform", "mlp_uniform", "static_hybrid"),
  ),
  Item("experiments/deconattn/mixers.py", minutes=3, value=3),
  Item("experiments/grains/steering.py", minutes=0.6, value=3),
  Item("experiments/reagent/recall.py", minutes=0.6, value=3),
  Item("experiments/functok/transitions.py", minutes=6, value=3),
  Item("experiments/avsr_sink/decorrelation.py", minutes=2, value=2),
  Item("experiments/biasprompt/transfer.py", minutes=1, value=2),
]

SCRIPTS = [
  Script(
    "decoding/pictures",
    "python experiments/decoding/pictures.py --runs runs --out experiments/decoding/results/pictures.json",
    output="experiments/decoding/results/pictures.json",
    reads=("runs/decoding-pair/smoke/target/seed0", "runs/decoding-ctrldiff/smoke/b16/seed0"),
  ),
  Script(
    "attnsink/gallery",
    "python experiments/attnsink/gallery.py --run runs/attnsink/smoke/softmax/seed0 "
    "--out experiments/attnsink/results/gallery",
    output="experiments/attnsink/results/gallery.json",
    reads=("runs/attnsink/smoke/softmax/seed0",),
  ),
  Script(
    "lact/figure1",
    "python experiments/lact/figure1.py --out experiments/lact/results/figure1-cpu",
    output="experiments/lact/results/figure1-cpu.md",
  ),
  Script(
    "hnet/boundaries",
    "python experiments/hnet/boundaries.py --run runs/hnet/smoke/1stage/seed0 runs/hnet/smoke/1stage/seed1 "
    "--out experiments/hnet/results/boundaries-smoke",
    output="experiments/hnet/results/boundaries-smoke.json",
    reads=("runs/hnet/smoke/1stage/seed0", "runs/hnet/smoke/1stage/seed1"),
  ),
  Script(
    "ilm/insertion_order",
    "python experiments/ilm/insertion_order.py --run runs/ilm-table1/smoke/easy/ilm/seed0 --greedy "
    "--out experiments/ilm/results/insertion_order_star.png",
    output="experiments/ilm/results/insertion_order_star.png",
    reads=("runs/ilm-table1/smoke/easy/ilm/seed0",),
  ),
  Script(
    "ilm/figure6",
    "python experiments/ilm/figure6.py --out experiments/ilm/results/figure6-smoke",
    output="experiments/ilm/results/figure6-smoke.json",
    reads=("runs/ilm-text/smoke/ilm/seed0",),
  ),
  Script(
    "mrt5/figure_deleted",
    "python experiments/mrt5/figure_deleted.py --run runs/mrt5-span-corruption/smoke/mrt5_50/seed0",
    output="experiments/mrt5/results/deleted.png",
    reads=("runs/mrt5-span-corruption/smoke/mrt5_50/seed0",),
    needs="a font with all scripts: --font",
  ),
]
