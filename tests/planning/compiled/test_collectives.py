"""Collectives read from HLO written by hand, in the forms that XLA prints."""

import textwrap

import numpy as np
import pytest
from jax.sharding import Mesh

from llama_jax.planning.compiled.collectives import Collective, collectives, wire_bytes


def program(entry: str, *computations: str) -> str:
    body = textwrap.indent(textwrap.dedent(entry).strip(), "  ")
    others = "\n\n".join(textwrap.dedent(computation).strip() for computation in computations)
    return (
        "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"
        f"{others}\n\nENTRY %main.1 (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"
    )


def loop_of(trips: int, body: str) -> tuple[str, str]:
    """A body and the condition `counter < trips`."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), "  ")
    return (
        f"%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {{\n{lines}\n}}",
        f"""\
        %condition.1 (p: (s32[], f32[8])) -> pred[] {{
          %limit = s32[]{{:T(128)}} constant({trips})
          %counter = s32[]{{:T(128)}} get-tuple-element(%p), index=0
          ROOT %lt = pred[] compare(%counter, %limit), direction=LT
        }}""",
    )


WHILE = (
    "%while.1 = (s32[], f32[8]) while(%init), condition=%condition.1, body=%body.1, "
    'metadata={op_name="jit(step)/transpose(jvp(Llama))/while" stack_frame_id=3}'
)


def only(hlo: str, trip_count: int | None = None) -> Collective:
    (collective,) = collectives(hlo, trip_count)
    return collective


@pytest.mark.parametrize(
    ("line", "shape", "size", "group_size", "wire"),
    [
        # 2 x 4 x 6 bfloat16 gathered by 4 devices: 96 bytes, of which each device is sent 3/4.
        (
            "%g = bf16[2,4,6]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1, "
            "replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}",
            "bf16[2,4,6]",
            96,
            4,
            72,
        ),
        ("%r = f32[10]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add", "f32[10]", 40, 2, 40),
        ("%r = (f32[], s32[3]{0}) all-reduce(%p, %q), replica_groups={}, to_apply=%add", "f32[], s32[3]", 16, 8, 28),
        # The result of a reduce-scatter is a shard.
        (
            "%s = f32[5]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add",
            "f32[5]",
            80,
            4,
            60,
        ),
        ("%x = bf16[8,2]{1,0} all-to-all(%p), replica_groups=[1,8]<=[8], dimensions={0}", "bf16[8,2]", 32, 8, 28),
        ("%c = pred[16]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", "pred[16]", 16, 2, 16),
        # Along one axis and half of another: groups of 2 x 4.
        (
            "%g = u8[64]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=4] {'a':(1)2,'b'}, dimensions={0}",
            "u8[64]",
            64,
            8,
            56,
        ),
        # Starts hold their operands beside their results.
        (
            "%g = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%p), replica_groups=[1,4]<=[4], dimensions={0}",
            "bf16[16]",
            32,
            4,
            24,
        ),
        (
            "%x = ((bf16[8,2]{1,0}), bf16[8,2]{1,0}) all-to-all-start(%p), replica_groups=[1,8]<=[8], dimensions={0}",
            "bf16[8,2]",
            32,
            8,
            28,
        ),
        (
            "%c = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
            "f32[4]",
            16,
            2,
            16,
        ),
    ],
)
def test_sizes_and_groups_of_each_form(line, shape, size, group_size, wire):
    collective = only(program(line))
    assert (collective.shape, collective.bytes, collective.group_size) == (shape, size, group_size)
    assert wire_bytes(collective) == wire
    assert (collective.count, collective.where, collective.phase) == (1, "entry", "other")


def test_a_collective_counts_once_a_turn_of_its_loop():
    body, condition = loop_of(
        5,
        """%g = bf16[16]{0} all-gather(%p), replica_groups=[2,4]<=[8],
        """.strip()
        + ' metadata={op_name="jit(step)/transpose(jvp(Llama))/while/body/layers/q_proj"}',
    )
    collective = only(program(WHILE, body, condition), trip_count=99)
    assert collective.count == 5 and wire_bytes(collective) == 5 * 24
    assert collective.where == "jit(step)/transpose(jvp(Llama))/while"
    assert collective.name.endswith("layers/q_proj") and collective.phase == "backward"


def test_turns_of_nested_loops_multiply():
    body, condition = loop_of(5, "%r = f32[2]{0} all-reduce(%p), replica_groups={}, to_apply=%add")
    outer_body = "%outer (p: f32[8]) -> f32[8] {\n  " + WHILE + "\n}"
    outer = (
        '%w = f32[8] while(%p), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"},"x":1}, '
        'metadata={op_name="jit(step)/while"}'
    )
    assert only(program(outer, body, condition, outer_body)).count == 15


def test_a_loop_that_does_not_tell_takes_the_given_trip_count():
    body, _ = loop_of(5, "%r = f32[2]{0} all-reduce(%p), replica_groups={}, to_apply=%add")
    silent = "%condition.1 (p: f32[8]) -> pred[] {\n  ROOT %x = pred[] custom-call(%p)\n}"
    assert only(program(WHILE, body, silent), trip_count=7).count == 7
    with pytest.raises(ValueError, match=r"jvp\(Llama\)\)/while does not tell its trip count"):
        collectives(program(WHILE, body, silent))


def test_the_fused_steps_of_one_asynchronous_collective_are_one():
    def step(name: str, channel: int, chain: int) -> str:
        return (
            f"%{name} (p: bf16[2]) -> bf16[16] {{\n"
            f"  ROOT %g.{name} = bf16[16]{{0}} all-gather(%p), channel_id={channel}, replica_groups=[1,8]<=[8], "
            f'frontend_attributes={{chain_id="{chain}"}}, '
            'backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}\n}'
        )

    steps = [("start", 4, 0), ("middle", 4, 0), ("done", 4, 0), ("other", 5, 1), ("manual", 5, 2)]
    calls = "\n".join(f"%f.{name} = bf16[16] fusion(%p), kind=kOutput, calls=%{name}" for name, _, _ in steps)
    found = collectives(program(calls, *(step(*each) for each in steps)))
    assert [each.count for each in found] == [1, 1, 1]


def test_start_and_done_of_a_wrapped_collective_are_one():
    wrapped = "%wrapped (p: f32[8]) -> f32[1] {\n  %s = f32[1]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8]\n}"
    entry = """
        %a = ((f32[8]), f32[1]) async-start(%p), calls=%wrapped
        %b = f32[1] async-done(%a), calls=%wrapped
    """
    assert only(program(entry, wrapped)).bytes == 32


def test_the_all_reduce_of_a_fused_reduce_scatter_is_a_reduce_scatter():
    fused = (
        "%all-reduce-scatter.7.clone (i: (bf16[16,4], bf16[8])) -> bf16[2,4] {\n"
        "  %r = (bf16[16,4]{1,0}, bf16[8]{0}) all-reduce(%i), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}\n}"
    )
    call = '%f = bf16[2,4] fusion(%p), calls=%all-reduce-scatter.7.clone, metadata={op_name="jit(step)/jvp()/psum"}'
    collective = only(program(call, fused))
    assert (collective.kind, collective.bytes, wire_bytes(collective)) == ("reduce-scatter", 144, 126)
    assert (collective.name, collective.phase) == ("jit(step)/jvp()/psum", "forward")


def test_text_of_a_kernel_does_not_end_a_computation():
    kernel = '%k = f32[8] custom-call(%p), backend_config={"body":"\n}}, more\n}x"}'
    reduce = "%r = f32[2]{0} all-reduce(%p), replica_groups={}, to_apply=%add"
    assert only(program(kernel + "\n" + reduce)).bytes == 8


AXES = ("data", "fsdp", "tensor")


class Chip:
    """As much of a device as says where it is."""

    def __init__(self, slice_index: int, process_index: int) -> None:
        self.slice_index, self.process_index = slice_index, process_index


def mesh_of(data: int, fsdp: int, tensor: int, a_slice: int = 64, a_host: int = 4) -> Mesh:
    """Devices in the order of their numbers, so many to a slice and to a host."""
    count = data * fsdp * tensor
    chips = np.array([Chip(number // a_slice, number // a_host) for number in range(count)], object)
    return Mesh(chips.reshape(data, fsdp, tensor), AXES)


@pytest.mark.parametrize(
    ("groups", "axes", "hosts"),
    [
        # Of the mesh 2 x 2 x 2, device 4 d + 2 f + t has the coordinates d, f, t.
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 1),
        ("{{0,2},{1,3},{4,6},{5,7}}", ("fsdp",), 1),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",), 1),
        ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("[2,4]<=[8]", ("fsdp", "tensor"), 1),
        ("mesh['a'=4,'b'=2] {'a'}", ("data", "fsdp"), 2),
        ("mesh['a'=4,'b'=2] {'a':(2)2}", ("fsdp",), 1),
        ("mesh['a'=4,'b'=2] {'a':(1)2}", ("data",), 2),
        # Devices 0, 4, 1, 5, 2, 6, 3, 7 as 4 x 2.
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",), 2),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'a'}", ("fsdp", "tensor"), 1),
        ("{}", AXES, 2),
        # No axes make these groups: the two smallest that hold them do.
        ("{{0,3},{1,2},{4,7},{5,6}}", ("fsdp", "tensor"), 1),
    ],
)
def test_groups_lie_along_axes_of_the_mesh(groups, axes, hosts):
    text = program(f"%r = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add")
    (collective,) = collectives(text, mesh=mesh_of(2, 2, 2))
    assert (collective.axes, collective.hosts, collective.slices) == (axes, hosts, 1)


def test_a_permutation_lies_along_the_axes_in_which_its_pairs_differ():
    text = program("%c = f32[8]{0} collective-permute(%p), source_target_pairs={{0,2},{2,0},{1,3},{3,1}}")
    (collective,) = collectives(text, mesh=mesh_of(2, 2, 2))
    assert (collective.axes, collective.group_size) == (("fsdp",), 4)


def test_a_program_for_several_slices_is_written_for_one_and_sends_to_the_others():
    """Three slices of 2 x 4: their 8 partitions are those of each slice, and what goes between slices is an all-reduce
    among the devices of the same number."""
    megascale = (
        '_xla_host_transfer_rendezvous="r_0",_xla_megascale_target="{1,2,3}x{0:7}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"'
    )
    text = program(f"""
        %g = bf16[16]{{0}} all-gather(%p), replica_groups=mesh['a'=2,'b'=4] {{'b'}}, dimensions={{0}}
        %send.1 = (f32[6]{{0}}, u32[], token[]) send(%p, %t), channel_id=2, frontend_attributes={{{megascale}}}
        %recv.1 = (f32[6]{{0}}, u32[], token[]) recv(%t), channel_id=3, frontend_attributes={{{megascale}}}
        %f = f32[8] fusion(%p), kind=kLoop, calls=%add
        %recv-done.1 = (f32[6]{{0}}, token[]) recv-done(%recv.1)
    """)
    gather, reduce = collectives(text, mesh=mesh_of(3, 2, 4, a_slice=8))
    assert (gather.axes, gather.slices, gather.overlapped) == (("tensor",), 1, False)
    assert (reduce.kind, reduce.bytes, reduce.group_size) == ("all-reduce", 24, 3)
    assert (reduce.axes, reduce.slices, reduce.overlapped) == (("data",), 3, True)
    assert wire_bytes(reduce) == 32


def test_partitions_of_a_slice_are_its_devices_in_the_order_of_the_mesh():
    """Two slices along the last axis: the two partitions of each lie along the first."""
    chips = np.array([Chip(number % 2, number) for number in range(4)], object)
    text = program("%r = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add")
    text = text.replace("num_partitions=8", "num_partitions=2")
    (collective,) = collectives(text, mesh=Mesh(chips.reshape(2, 1, 2), AXES))
    assert (collective.axes, collective.slices) == (("data",), 1)


@pytest.mark.parametrize(
    ("between", "settings", "overlapped"),
    [
        ("%f = f32[8] fusion(%p), calls=%add", "", True),
        ("%b = f32[8] bitcast(%p)", "", False),
        (
            "%f = f32[8] fusion(%p), calls=%add",
            ', backend_config={"collective_backend_config":{"is_sync":true}}',
            False,
        ),
    ],
)
def test_a_collective_is_overlapped_where_the_schedule_has_work_before_its_end(between, settings, overlapped):
    start = "((bf16[16]{0}, f32[4]{0}), (bf16[4]{0}, f32[1]{0})) reduce-scatter-start(%p, %q)"
    text = program(f"""
        %s = {start}, replica_groups=[2,4]<=[8]{settings}
        {between}
        %d = (bf16[4]{{0}}, f32[1]{{0}}) reduce-scatter-done(%s)
        %after = f32[8] fusion(%p), calls=%add
    """)
    collective = only(text)
    assert (collective.bytes, collective.shape) == (48, "bf16[4], f32[1]")
    assert collective.overlapped == overlapped


def test_a_loop_that_was_unrolled_once_has_half_the_turns():
    body, condition = loop_of(
        8,
        """\
        %counter = s32[] get-tuple-element(%p), index=0
        %two = s32[] constant(2)
        %next = s32[] add(%counter, %two)
        %r = f32[2]{0} all-reduce(%q), replica_groups={}, to_apply=%add
        ROOT %all = (s32[], f32[8]) tuple(%next, %q)""",
    )
    assert only(program(WHILE, body, condition)).count == 4
