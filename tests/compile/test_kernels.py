"""What is decided about kernels without Triton: packing, grids, splits, PTX as text, twins; and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockwright.compile import kernels
from blockwright.compile.blocked import dequantise_blocks, quantise_blocks
from blockwright.compile.kernel_twins import (
    far_tokens,
    int4_weight,
    sparse_decode_twin,
    sparse_mask,
    sparse_prefill_twin,
)
from blockwright.compile.kernels import Axis, Heads, extents
from blockwright.compile.planar import pack_planar, unpack_planar
from blockwright.compile.ptx import entry_name, parameter_types, target, version, without_scratch
from blockwright.errors import InputError
from blockwright.spec import Format

PTX = """//
.version 8.7
.target sm_90a
.address_size 64
\t// .globl\tadd
.visible .entry add(
\t.param .u64 .ptr .global .align 1 add_param_0,
\t.param .u32 add_param_1,
\t.param .u64 .ptr .global .align 1 add_param_2,
\t.param .u64 .ptr .global .align 1 add_param_3
)
.reqntid 128
{
\tld.param.b64 \t%rd1, [add_param_0];
\tld.param.b32 \t%r1, [add_param_1];
\tret;
}
"""


@given(st.sampled_from([32, 64, 128]), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_planar_codes_come_back_as_they_were(group: int, num_groups: int, num_outputs: int, seed: int) -> None:
    codes_KN = np.random.default_rng(seed).integers(-8, 8, (group * num_groups, num_outputs)).astype(np.int8)
    packed = pack_planar(codes_KN, group)
    assert packed.shape == (num_outputs, group * num_groups // 2) and packed.flags.c_contiguous
    assert np.array_equal(unpack_planar(packed, group), codes_KN)


def test_a_byte_holds_codes_half_a_group_apart() -> None:
    codes_KN = np.zeros((64, 1), dtype=np.int8)
    codes_KN[33], codes_KN[49] = -8, 7  # group 1, second input and the one half a group behind it
    packed = pack_planar(codes_KN, 32)
    assert packed[0, 17] == 0xF0
    assert set(np.delete(packed[0], 17).tolist()) == {0x88}


def test_inputs_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(InputError, match="whole groups of 32"):
        pack_planar(np.zeros((48, 2), dtype=np.int8), 32)


@pytest.mark.parametrize("group", [32, 128])
def test_planar_weights_are_those_of_the_blocked_format(group: int) -> None:
    weight_KN = np.random.default_rng(0).standard_normal((2 * group, 7)).astype(np.float32)
    codes_KN, scales_GN = quantise_blocks(weight_KN, Format(name="int4", group_size=group))
    planar = int4_weight(torch.from_numpy(pack_planar(codes_KN, group)), torch.from_numpy(scales_GN.T.copy()))
    assert np.array_equal(planar.numpy().T, dequantise_blocks(codes_KN, scales_GN, group))


def test_grids_cover_all_work() -> None:
    sizes = {"num_rows": 17, "num_outputs": 100, "num_splits": 3}
    assert extents(kernels.int4_vector("fp16", 32, is_split=False), sizes) == (4, 3, 17)
    assert extents(kernels.int4_tiles("fp16", 32, is_split=False, block_rows=16), sizes) == (2, 3, 2)
    heads = Heads(number="fp16", head_dim=64, heads_per_kv=4)
    attention = {"batch": 2, "num_kv_heads": 3, "num_heads": 12, "num_splits": 5, "num_queries": 129}
    assert extents(kernels.sparse_decode(heads, is_split=True), attention) == (6, 5)
    assert extents(kernels.sparse_prefill(heads), attention) == (2, 24)
    assert extents(kernels.join_splits("fp16", 64), attention) == (24,)


def test_steps_of_grids_are_the_tiles_that_are_compiled_in() -> None:
    heads = Heads(number="fp16", head_dim=64, heads_per_kv=4)
    for kernel, constant, axis in (
        (kernels.int4_vector("fp16", 32, is_split=False), "BLOCK_N", 0),
        (kernels.int4_tiles("fp16", 32, is_split=False, block_rows=32), "BLOCK_N", 0),
        (kernels.int4_tiles("fp16", 32, is_split=False, block_rows=32), "BLOCK_M", 2),
        (kernels.sum_splits("fp16"), "BLOCK", 0),
        (kernels.sparse_prefill(heads), "BLOCK_T", 0),
        (kernels.sparse_prefill(dataclasses.replace(heads, head_dim=256)), "BLOCK_T", 0),
    ):
        assert kernel.grid[axis].step == dict(kernel.constants)[constant]


def test_few_rows_take_small_tiles() -> None:
    names = [kernels.linear_for("fp16", 32, rows, is_split=False).name for rows in (1, 2, 16, 17, 33, 5000)]
    assert names == [
        "int4_vector_fp16_g32",
        *("int4_tiles_fp16_g32_m16",) * 2,
        "int4_tiles_fp16_g32_m32",
        *("int4_tiles_fp16_g32_m64",) * 2,
    ]


@pytest.mark.parametrize(
    ("rows", "outputs", "groups", "processors", "expected"),
    [
        (1, 4096, 128, 132, 4),  # 128 tiles of 32 outputs; 528 programs wanted
        (1, 65536, 128, 132, 1),  # enough without
        (1, 32, 32, 132, 4),  # at least 8 groups in each
        (1, 32, 8, 132, 1),
        (8, 4096, 448, 132, 8),  # 64 tiles of 64 outputs
        (4096, 4096, 128, 132, 1),
    ],
)
def test_groups_are_split_where_programs_are_too_few(
    rows: int, outputs: int, groups: int, processors: int, expected: int
) -> None:
    kernel = kernels.linear_for("fp16", 32, rows, is_split=False)
    assert kernels.linear_splits(kernel, rows, outputs, groups, processors) == expected


@pytest.mark.parametrize(
    ("batch", "kv_heads", "slots", "expected"),
    [(1, 8, 131072, 64), (1, 8, 4096, 16), (1, 8, 160, 1), (64, 8, 131072, 1), (4, 8, 131072, 16)],
)
def test_slots_are_split_where_programs_are_too_few(batch: int, kv_heads: int, slots: int, expected: int) -> None:
    assert kernels.decode_splits(batch, kv_heads, slots, 132) == expected


@pytest.mark.parametrize("number", ["fp16", "bf16"])
def test_names_tell_kernels_apart(number: kernels.Number) -> None:
    heads = [Heads(number=number, head_dim=64, heads_per_kv=1)]
    heads += [dataclasses.replace(heads[0], scale=0.5), dataclasses.replace(heads[0], heads_per_kv=2)]
    found = [kernels.sparse_decode(each, is_split) for each in heads for is_split in (False, True)]
    found += [kernels.sparse_prefill(each) for each in heads]
    found += [kernels.int4_tiles(number, 32, is_split, rows) for is_split in (False, True) for rows in (16, 32)]
    assert len({kernel.name for kernel in found}) == len(found) == len(set(found))


@pytest.mark.parametrize(
    ("head_dim", "heads_per_kv", "field"),
    [(8, 1, "head_dim"), (264, 1, "head_dim"), (60, 1, "head_dim"), (64, 0, "heads_per_kv"), (64, 65, "heads_per_kv")],
)
def test_heads_that_no_kernel_takes_are_refused(head_dim: int, heads_per_kv: int, field: str) -> None:
    with pytest.raises(InputError) as refused:
        Heads(number="fp16", head_dim=head_dim, heads_per_kv=heads_per_kv)
    assert refused.value.field == field


def test_groups_that_no_kernel_takes_are_refused() -> None:
    for make in (kernels.int4_vector, kernels.int4_tiles):
        with pytest.raises(InputError, match="groups of 32, 64, 128"):
            make("fp16", 16, is_split=False)


def test_one_axis_may_be_a_product() -> None:
    kernel = dataclasses.replace(kernels.sum_splits("fp16"), grid=(Axis(sizes=("a", "b"), step=4), Axis()))
    assert extents(kernel, {"a": 3, "b": 7}) == (6, 1)


def test_ptx_is_read() -> None:
    assert entry_name(PTX) == "add"
    assert parameter_types(PTX) == ["u64", "u32", "u64", "u64"]
    assert (version(PTX), target(PTX)) == ((8, 7), "sm_90a")


def test_parameters_that_nobody_passes_are_taken_off() -> None:
    stripped = without_scratch(PTX, 2)
    assert parameter_types(stripped) == ["u64", "u32"]
    assert stripped.split("{")[1] == PTX.split("{")[1]
    assert "add_param_1\n)" in stripped and "add_param_2" not in stripped
    assert parameter_types(without_scratch(PTX, 4)) == parameter_types(PTX)


def test_parameters_that_are_read_are_not_taken_off() -> None:
    with pytest.raises(AssertionError, match="add_param_1 is read"):
        without_scratch(PTX, 1)


def test_more_arguments_than_parameters_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="as many as are declared"):
        without_scratch(PTX, 5)


def test_the_mask_is_what_separator_attention_says() -> None:
    """By hand: initial token 0, a separator at 3, two neighbours."""
    is_far_BS = torch.tensor([[True, False, False, True, False, False, False]])
    mask = sparse_mask(torch.tensor([[0, 2, 4, 6]]), is_far_BS, 2)[0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 0, 1, 1],
    ]


def test_far_tokens_are_listed_and_counted() -> None:
    is_far_BS = torch.tensor([[True, False, True, True], [False, False, True, False]])
    far, before = far_tokens(is_far_BS)
    assert far[0].tolist() == [0, 2, 3] and far[1, 0] == 2
    assert before.tolist() == [[0, 1, 1, 2, 3], [0, 0, 0, 1, 1]]
    nothing, before = far_tokens(torch.zeros(1, 3, dtype=torch.bool))
    assert nothing.shape == (1, 1) and before.tolist() == [[0, 0, 0, 0]]


def test_the_twins_are_torchs_own_attention_where_everything_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 16, generator=generator) for heads in (4, 2, 2))
    far = far_tokens(torch.ones(2, 9, dtype=torch.bool))
    starts_B = torch.zeros(2, dtype=torch.int32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(sparse_prefill_twin(q, k, v, far, starts_B, 1, 0.25), expected)
    counts_B = torch.tensor([9, 9], dtype=torch.int32)
    torch.testing.assert_close(sparse_decode_twin(q[:, :, -1], k, v, counts_B, 0.25), expected[:, :, -1])
