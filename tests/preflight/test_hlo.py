"""The report's reader against programs whose answer is known by hand: text in the compiler's own
grammar.
"""

import math

import pytest

from jaxlm.preflight import hlo
from jaxlm.preflight.collectives import collectives, first_group
from jaxlm.preflight.cost import cost
from jaxlm.preflight.loops import Loops

MATMUL = """HloModule jit_f, is_scheduled=true

FileNames
1 "model.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=27 end_line=27 column=6 end_column=76}

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%fused_computation (param_0: bf16[8,16], param_1: bf16[16,32]) -> bf16[8,32] {
  %param_0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), dim_labels=bf_io->bf, metadata={op_name="jit(f)/dot_general" stack_frame_id=1}
}

ENTRY %main (x: bf16[8,16], w: bf16[16,32]) -> bf16[8,32] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %fusion.1 = bf16[8,32]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%fused_computation, metadata={op_name="jit(f)/dot_general" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"1234"}}
}
"""


def loop_text(*, start=0, bound=12, step=1, direction="LT", bound_in_carry=False):
  """A while loop around one matmul; the bound as a constant of the condition or moved into the
  carry.
  """
  n = "%get-tuple-element.9" if bound_in_carry else "%constant.9"
  fetch = (
    "%get-tuple-element.9 = s32[]{:T(128)} get-tuple-element(%p), index=2"
    if bound_in_carry
    else f"%constant.9 = s32[]{{:T(128)}} constant({bound})"
  )
  carry = "(s32[]{:T(128)}, f32[4,4]{1,0:T(4,128)}, s32[]{:T(128)})"
  return f"""HloModule jit_scan

%body (p.1: (s32[], f32[4,4], s32[])) -> (s32[], f32[4,4], s32[]) {{
  %p.1 = {carry} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  %h = f32[4,4]{{1,0:T(4,128)}} get-tuple-element(%p.1), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%p.1), index=2
  %c = s32[]{{:T(128)}} constant({step})
  %add.1 = s32[]{{:T(128)}} add(%i, %c)
  %dot.1 = f32[4,4]{{1,0:T(4,128)}} dot(%h, %h), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %tuple.1 = {carry} tuple(%add.1, %dot.1, /*index=2*/%n)
}}

%cond (p: (s32[], f32[4,4], s32[])) -> pred[] {{
  %p = {carry} parameter(0)
  %get-tuple-element.8 = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  {fetch}
  ROOT %compare.1 = pred[]{{:T(512)}} compare(%get-tuple-element.8, {n}), direction={direction}
}}

ENTRY %main (h: f32[4,4]) -> f32[4,4] {{
  %h.1 = f32[4,4]{{1,0:T(4,128)}} parameter(0)
  %start = s32[]{{:T(128)}} constant({start})
  %copy.1 = s32[]{{:T(128)}} copy(%start)
  %bound = s32[]{{:T(128)}} constant({bound})
  %tuple.2 = {carry} tuple(%copy.1, %h.1, %bound)
  %while.1 = {carry} while(%tuple.2), condition=%cond, body=%body
  ROOT %out = f32[4,4]{{1,0:T(4,128)}} get-tuple-element(%while.1), index=1
}}
"""


def psum_text(groups, op="all-reduce", shape="f32[4194304]{0:T(1024)}"):
  return f"""HloModule jit_psum

ENTRY %main (x: f32[4194304]) -> f32[4194304] {{
  %x = f32[4194304]{{0:T(1024)}} parameter(0)
  ROOT %{op}.1 = {shape} {op}(%x), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""


def test_one_matmul_has_its_flops_cycles_bytes_and_source_line():
  found = cost(Loops(hlo.parse(MATMUL)))
  (row,) = found.work
  assert row.flops == 2 * 8 * 16 * 32
  assert row.cycles == 1234 and row.op_class == "matmul" and row.source == "model.py:27"
  assert row.bytes == 2 * (8 * 16 + 8 * 32)  # the weights lie on chip


@pytest.mark.parametrize(
  "options, trips",
  [
    (dict(), 12),
    (dict(start=2, bound=9), 7),
    (dict(bound=12, step=2), 6),
    (dict(bound=11, step=2), 6),
    (dict(bound=12, bound_in_carry=True), 12),
    (dict(start=11, bound=0, step=-1, direction="GE"), 12),
    (dict(bound=5, direction="LE"), 6),
    (dict(bound=7, direction="NE"), 7),
  ],
)
def test_trip_count_follows_from_start_increment_and_bound(options, trips):
  loops = Loops(hlo.parse(loop_text(**options)))
  assert loops.trips == {"while.1": trips} and not loops.unknown
  assert cost(loops).flops == trips * 2 * 4 * 4 * 4


def test_a_loop_that_cannot_be_read_is_reported_not_guessed():
  loops = Loops(hlo.parse(loop_text(direction="LT", step=-1)))
  assert loops.unknown == ["while.1"]


def test_batched_matmul_as_convolution_counts_no_padding():
  text = (
    MATMUL.replace("bf16[8,16]{1,0:T(8,128)(2,1)}", "bf16[64,512,64]{2,1,0}")
    .replace("bf16[16,32]{1,0:T(8,128)(2,1)S(1)}", "bf16[64,512,64]{2,1,0}")
    .replace("bf16[8,32]{1,0:T(8,128)(2,1)}", "bf16[64,512,512]{2,1,0}")
    .replace(
      "dim_labels=bf_io->bf",
      "window={size=64 stride=63 pad=0_0 lhs_dilate=64}, dim_labels=0bf_0oi->0bf",
    )
  )
  assert cost(Loops(hlo.parse(text))).flops == 2 * 64 * 512 * 512 * 64


@pytest.mark.parametrize(
  "groups, axes",
  [
    ("replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}", ("data", "fsdp")),
    ("replica_groups=[1,16]<=[16]", ("data", "fsdp")),
    ("replica_groups=mesh['axis_0'=16] {'axis_0'}", ("data", "fsdp")),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}", ("fsdp",)),
    ("replica_groups=[2,8]<=[16]", ("fsdp",)),
    ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",)),
    ("replica_groups={{0,8},{1,9},{2,10},{3,11},{4,12},{5,13},{6,14},{7,15}}", ("data",)),
  ],
)
def test_a_psum_is_charged_twice_its_bytes_along_the_axes_of_its_groups(groups, axes):
  loops = Loops(hlo.parse(psum_text(groups)))
  (found,) = collectives(loops, {"data": 2, "fsdp": 8})
  n = math.prod({"data": 2, "fsdp": 8}[a] for a in axes)
  assert found.axes == axes and found.group == n and found.count == 1
  assert found.wire == int(2 * 4 * 4194304 * (n - 1) / n)


def test_pieces_of_one_asynchronous_collective_count_once():
  text = psum_text("replica_groups=[1,16]<=[16]").replace(
    "  ROOT",
    "  %all-reduce.7 = f32[4194304]{0:T(1024)} all-reduce(%x), channel_id=1, "
    "replica_groups=[1,16]<=[16], to_apply=%add\n  ROOT",
  )
  assert len(collectives(Loops(hlo.parse(text)), {"fsdp": 16})) == 1


def sent_text(kind, target="{1,2}x{0:3}", shape="f32[12,8,128]{2,1,0:T(8,128)}"):
  """What the compiler makes of a collective over slices: a transfer to the host, and one back."""
  about = (
    f'frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",'
    f'_xla_megascale_target="{target}",_xla_megascale_transfer_type="{kind}"}}'
  )
  result = f"({shape}, u32[]{{:S(2)}}, token[])"
  return f"""HloModule jit_step

ENTRY %main (x: f32[12,8,128]) -> f32[12,8,128] {{
  %x = {shape} parameter(0)
  %after-all.1 = token[] after-all()
  %send.1 = {result} send(%x, %after-all.1), channel_id=4, is_host_transfer=true, {about}
  %recv.1 = {result} recv(%after-all.1), channel_id=3, is_host_transfer=true, {about}
  ROOT %done.1 = {shape} get-tuple-element(%recv.1), index=0
}}
"""


@pytest.mark.parametrize(
  "kind, target, fraction",
  [
    ("ALL_REDUCE", "{1,2}x{0:3}", 1),
    ("ALL_REDUCE", "{1:4}x{0:3}", 1.5),
    ("REDUCE_SCATTER", "{1:4}x{0:3}", 0.75),
    ("ALL_GATHER", "{1:4}x{0:3}", 3),
    ("ONE_TO_ONE", "{1,2}x{0:3}", 1),
  ],
)
def test_what_goes_from_slice_to_slice_is_found_and_kept_apart(kind, target, fraction):
  (found,) = collectives(Loops(hlo.parse(sent_text(kind, target))), {"data": 4, "fsdp": 4})
  assert found.between_slices and found.axes == ("data",)
  assert found.payload == 4 * 12 * 8 * 128 and found.wire == fraction * found.payload
  assert found.kind == kind.lower().replace("_", "-")


def test_collectives_of_two_shapes_count_twice_though_shard_map_gave_them_one_channel():
  text = psum_text("replica_groups=[1,16]<=[16]").replace(
    "  ROOT",
    "  %all-reduce.7 = f32[64]{0:T(1024)} all-reduce(%x), channel_id=1, replica_groups=[1,16]<=[16], to_apply=%add\n  ROOT",
  )
  assert [c.payload for c in collectives(Loops(hlo.parse(text)), {"fsdp": 16})] == [
    4 * 4194304,
    4 * 64,
  ]


def test_the_largest_integer_is_no_estimate_of_cycles():
  (row,) = cost(Loops(hlo.parse(MATMUL.replace('"1234"', f'"{2**63 - 1}"')))).work
  assert row.cycles == 0


def test_a_permutation_names_the_axis_of_its_ring():
  pairs = "source_target_pairs={{0,4},{4,8},{8,12},{12,0},{1,5},{5,9},{9,13},{13,1}}"
  assert first_group(pairs, 16) == [0, 4, 8, 12]


def test_the_lines_of_a_pallas_call_do_not_end_its_computation():
  call = (
    '  %k.1 = f32[4,4]{1,0:T(4,128)} custom-call(%h), custom_call_target="tpu_custom_call", '
    'backend_config={"xprof":"{\n"block": 512\n}}, metadata={op_name="jit(f)/kernel"}\n'
  )
  loops = Loops(hlo.parse(loop_text().replace("  %dot.1", call + "  %dot.1")))
  assert loops.trips == {"while.1": 12}
  assert [w.count for w in cost(loops).work if w.op_class == "kernel"] == [12]


def test_text_without_entry_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse("HloModule nothing\n")


MOVES = """HloModule jit_f, is_scheduled=true

%async_computation (param_0: bf16[64,512]) -> bf16[16,512] {
  %param_0 = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %slice.1 = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} slice(%param_0), slice={[0:16], [0:512]}
}

ENTRY %main (x: bf16[64,512]) -> bf16[64,512] {
  %x = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %buffer = bf16[12,64,512]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %slice-start = ((bf16[64,512]{1,0:T(8,128)(2,1)}), bf16[16,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) async-start(%x), calls=%async_computation
  %slice-done = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} async-done(%slice-start)
  %in-start = (bf16[64,512]{1,0:T(8,128)(2,1)S(1)}, bf16[64,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %in-done = bf16[64,512]{1,0:T(8,128)(2,1)S(1)} copy-done(%in-start)
  %out-start = (bf16[64,512]{1,0:T(8,128)(2,1)}, bf16[64,512]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%in-done)
  ROOT %out-done = bf16[64,512]{1,0:T(8,128)(2,1)} copy-done(%out-start)
}
"""


def test_moves_between_hbm_and_the_chip_are_charged_once_on_the_hbm_side():
  work = {w.name: w.bytes for w in cost(Loops(hlo.parse(MOVES))).work}
  whole = 64 * 512 * 2
  assert work == {"slice.1": whole // 4, "in-start": whole, "out-start": whole}


KERNELS = """HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[64,512]) -> bf16[64,512] {
  %x = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %scan.1 = bf16[64,512]{1,0:T(8,128)(2,1)} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/ssd_forward/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"9","flops":"1000","transcendentals":"7"}}}
  ROOT %attention_forward.2 = bf16[64,512]{1,0:T(8,128)(2,1)} custom-call(%scan.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/attention_forward/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"9","flops":"500","transcendentals":"7"}}}
}
"""


def test_a_kernel_counts_by_its_cost_estimate_and_attention_is_left_to_the_formula():
  found = cost(Loops(hlo.parse(KERNELS)))
  assert found.kernel_flops == 1000 and found.flops == 0
  assert found.by_class()["kernel"]["count"] == 2
