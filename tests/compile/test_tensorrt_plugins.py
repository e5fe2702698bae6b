"""What we answer when TensorRT asks for our kernels, by a stand-in for its module: it is not at hand."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is needed (the extra triton)")

from blockwright.compile.kernels import extents
from blockwright.compile.ptx import entry_name, parameter_types, version
from blockwright.compile.tensorrt_package import find_package
from blockwright.compile.tensorrt_plugins import NAMESPACE, PLUGINS, Given, Plugin, extents_of, product
from blockwright.compile.tensorrt_register import (
    add_int4_linear,
    add_sparse_decode,
    add_sparse_prefill,
    plugin_module,
    register_plugins,
)
from blockwright.errors import InputError
from tensorrt_stand_in import PACKAGE, DataType, Desc, Network, PluginModule, Symbol, divide_up

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:triton")
BY_NAME = {plugin.name: plugin for plugin in PLUGINS}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> PluginModule:
    made = PluginModule()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", made)  # type: ignore[arg-type]
    return made


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a plugin is given, and what must come of it."""

    shapes: tuple[tuple[int, ...], ...]
    types: str = "h"
    attributes: dict[str, int] = field(default_factory=dict)
    outputs: tuple[tuple[tuple[int, ...], DataType], ...]
    grid: tuple[int, int, int]
    numbers: list[int]


_KV = ((2, 2, 100, 64),) * 2
CASES = {
    "int4_linear": Case(
        shapes=((3, 5, 256), (70, 128), (70, 8)),
        attributes={"group": 32, "rows_at_once": 1},
        outputs=(((3, 5, 70), DataType.HALF),),
        grid=(3, 1, 15),
        numbers=[70, 8, 8],
    ),
    "int4_linear_split": Case(
        shapes=((17, 256), (70, 128), (70, 8)),
        types="b",
        attributes={"group": 32, "rows_at_once": 16, "num_splits": 3},
        outputs=(((3, 17, 70), DataType.FLOAT),),
        grid=(2, 3, 2),
        numbers=[17, 70, 8, 3],
    ),
    "sum_splits": Case(
        shapes=((3, 17, 70),),
        types="f",
        attributes={"is_bf16": 1},
        outputs=(((17, 70), DataType.BF16),),
        grid=(2, 1, 1),
        numbers=[17 * 70, 3],
    ),
    "sparse_decode": Case(
        shapes=((2, 8, 64), *_KV, (2,)),
        outputs=(((2, 8, 64), DataType.HALF), ((2, 8, 1), DataType.FLOAT)),
        grid=(4, 1, 1),
        numbers=[2, 100],
    ),
    "sparse_decode_split": Case(
        shapes=((2, 8, 64), *_KV, (2,)),
        attributes={"num_splits": 5},
        outputs=(((2, 8, 5, 64), DataType.FLOAT), ((2, 8, 5), DataType.FLOAT)),
        grid=(4, 5, 1),
        numbers=[2, 100],
    ),
    "join_splits": Case(
        shapes=((2, 8, 5, 64), (2, 8, 5)),
        types="f",
        attributes={"is_bf16": 0},
        outputs=(((2, 8, 64), DataType.HALF),),
        grid=(16, 1, 1),
        numbers=[5],
    ),
    "sparse_prefill": Case(
        shapes=((2, 8, 130, 64), *_KV, (2, 20), (2, 101), (2,)),
        attributes={"num_neighbours": 16},
        outputs=(((2, 8, 130, 64), DataType.HALF),),
        grid=(2, 16, 1),
        numbers=[130, 100, 20, 2, 16],
    ),
}
_FIXED = {"q": (1, 2), "k": (1, 3), "v": (1, 3), "partial": (3,)}
"""Sides that a kernel is compiled for."""


def _tensors(plugin: Plugin, case: Case, is_open: bool) -> list[Desc]:
    dtype = {"h": DataType.HALF, "b": DataType.BF16, "f": DataType.FLOAT}[case.types]
    found = []
    for name, shape in zip(plugin.inputs, case.shapes, strict=True):
        fixed = (1, 3) if plugin.name == "sparse_prefill" and name == "q" else _FIXED.get(name, ())
        sides = [Symbol(side, is_constant=index in fixed) if is_open else side for index, side in enumerate(shape)]
        found.append(Desc(shape_expr=sides, dtype=dtype))
    return found


def _value(number: Any) -> int:
    return number.value if isinstance(number, Symbol) else number


def test_all_plugins_are_registered_once(module: PluginModule) -> None:
    names = register_plugins(PACKAGE, "sm90")
    assert register_plugins(PACKAGE, "sm90") == names == tuple(module.described) == tuple(module.implemented)
    assert names == tuple(f"blockwright::{name}" for name in CASES)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_signatures_tell_inputs_from_attributes(plugin: Plugin, module: PluginModule) -> None:
    """By TensorRT's rule: inputs, attributes, outputs, tactic, each with its type."""
    register_plugins(PACKAGE, "sm90")
    name = f"blockwright::{plugin.name}"
    described = inspect.signature(module.described[name])
    types = {each.name: each.annotation for each in described.parameters.values()}
    assert types == dict.fromkeys(plugin.inputs, Desc) | dict.fromkeys(plugin.attributes, int)
    assert get_args(described.return_annotation) == (Desc,) * plugin.num_outputs
    implemented = inspect.signature(module.implemented[name])
    assert list(implemented.parameters) == [*plugin.inputs, *plugin.attributes, "outputs", "tactic"]
    assert get_args(implemented.return_annotation) == (str, str, module.KernelLaunchParams, module.SymIntExprs)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_outputs_have_their_shapes_and_types(name: str, is_open: bool, module: PluginModule) -> None:
    register_plugins(PACKAGE, "sm90")
    plugin, case = BY_NAME[name], CASES[name]
    found = module.described[f"blockwright::{name}"](*_tensors(plugin, case, is_open), **case.attributes)
    assert tuple((tuple(map(_value, each.shape_expr)), each.dtype) for each in found) == case.outputs


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_handed_over_with_their_launches(name: str, module: PluginModule) -> None:
    register_plugins(PACKAGE, "sm86")
    plugin, case = BY_NAME[name], CASES[name]
    arguments = (*_tensors(plugin, case, is_open=True), *case.attributes.values(), (), 0)
    entry, ptx, launch, numbers = module.implemented[f"blockwright::{name}"](*arguments)
    assert entry_name(ptx) == entry and version(ptx) == (8, 7) and "\n.target sm_86\n" in ptx
    assert tuple(map(_value, launch[:3])) == case.grid
    assert f".reqntid {launch[3]}\n" in ptx and launch[4:6] == (1, 1) and 0 < launch[6] <= 99 * 1024
    assert list(map(_value, numbers)) == case.numbers
    kinds = ["u64"] * len(plugin.inputs) + ["u32"] * len(numbers) + ["u64"] * plugin.num_outputs
    assert parameter_types(ptx) == kinds, "inputs, whole numbers, outputs, and nothing behind them"


@pytest.mark.parametrize("name", CASES)
def test_grids_of_numbers_are_those_of_other_launches(name: str) -> None:
    plugin, case = BY_NAME[name], CASES[name]
    shapes = dict(zip(plugin.inputs, case.shapes, strict=True))
    given = Given(shapes=shapes, attributes=case.attributes, number="fp16", divide_up=divide_up)
    kernel, sizes = plugin.kernel(given), plugin.sizes(given)
    assert extents_of(kernel, sizes, divide_up) == (*extents(kernel, sizes), 1, 1)[:3]


@pytest.mark.parametrize("sides", [(3, 5, 7), (Symbol(3), 5, 7), (3, 5, Symbol(7)), (Symbol(3), 1, Symbol(7)), ()])
def test_products_of_numbers_and_symbols(sides: tuple[Any, ...]) -> None:
    assert _value(product(sides)) == prod(map(_value, sides))


def _refusal(module: PluginModule, name: str, tensors: Sequence[Desc], *attributes: int) -> str:
    register_plugins(PACKAGE, "sm90")
    with pytest.raises(InputError) as refused:
        module.implemented[f"blockwright::{name}"](*tensors, *attributes, (), 0)
    return refused.value.field


def test_heads_that_may_change_are_refused(module: PluginModule) -> None:
    tensors = _tensors(BY_NAME["sparse_decode"], CASES["sparse_decode"], is_open=True)
    tensors[1].shape_expr = [Symbol(side) for side in (2, 2, 100, 64)]
    assert _refusal(module, "sparse_decode", tensors) == "k: side 1"


def test_activations_in_fp32_are_refused(module: PluginModule) -> None:
    tensors = _tensors(BY_NAME["int4_linear"], CASES["int4_linear"], is_open=True)
    tensors[0].dtype = DataType.FLOAT
    assert _refusal(module, "int4_linear", tensors, 32, 1) == "blockwright::int4_linear"


@pytest.mark.parametrize(("group", "rows", "field_name"), [(32, 8, "rows_at_once"), (48, 1, "group")])
def test_attributes_that_no_kernel_has_are_refused(
    group: int, rows: int, field_name: str, module: PluginModule
) -> None:
    tensors = _tensors(BY_NAME["int4_linear"], CASES["int4_linear"], is_open=True)
    assert _refusal(module, "int4_linear", tensors, group, rows) == field_name


def test_gpus_that_no_kernel_is_compiled_for_are_refused(module: PluginModule) -> None:
    with pytest.raises(InputError, match="sm75"):
        register_plugins(PACKAGE, "sm75")
    assert not module.described


def test_split_work_is_two_plugins_in_a_network(module: PluginModule) -> None:
    register_plugins(PACKAGE, "sm90")
    x, network = SimpleNamespace(dtype=DataType.BF16), Network()
    assert add_int4_linear(network, PACKAGE, (x, "codes", "scales"), 32) == "int4_linear:0"
    assert add_int4_linear(network, PACKAGE, (x, "codes", "scales"), 32, num_splits=4) == "sum_splits:0"
    assert add_sparse_decode(network, PACKAGE, (x, "k", "v", "counts")) == "sparse_decode:0"
    assert add_sparse_decode(network, PACKAGE, (x, "k", "v", "counts"), num_splits=8) == "join_splits:0"
    inputs = (x, "k", "v", "far", "far_before", "starts")
    assert add_sparse_prefill(network, PACKAGE, inputs, num_neighbours=64) == "sparse_prefill:0"
    one_row = {"group": 32, "rows_at_once": 1}
    assert network.added == [
        ("int4_linear", (x, "codes", "scales"), one_row),
        ("int4_linear_split", (x, "codes", "scales"), one_row | {"num_splits": 4}),
        ("sum_splits", ("int4_linear_split:0",), {"is_bf16": 1}),
        ("sparse_decode", (x, "k", "v", "counts"), {}),
        ("sparse_decode_split", (x, "k", "v", "counts"), {"num_splits": 8}),
        ("join_splits", ("sparse_decode_split:0", "sparse_decode_split:1"), {"is_bf16": 1}),
        ("sparse_prefill", inputs, {"num_neighbours": 64}),
    ]


def test_a_tensorrt_that_takes_no_kernels_is_refused(module: PluginModule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin_module(PACKAGE) is module
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"TensorRT 11\.4\.0 with a plugin module that takes no compiled kernels"):
        plugin_module(PACKAGE)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no plugin module that loads .* TensorRT 10\.15 or later"):
        plugin_module(PACKAGE)


def test_a_tensorrt_that_cannot_read_attributes_with_this_numpy_is_refused(module: PluginModule) -> None:
    older = replace(PACKAGE, version="10.15.1")
    try:
        int(np.array([1]))  # type: ignore[arg-type]
    except TypeError:
        with pytest.raises(InputError, match=r"TensorRT 10.15.1 with NumPy .*; expected TensorRT 11.4 or later"):
            register_plugins(older, "sm86")
        assert not hasattr(module.op, NAMESPACE), "none is left half-way"
    else:
        assert register_plugins(older, "sm86")
    assert register_plugins(replace(PACKAGE, version="11.4.0"), "sm86")


def test_tensorrt_rtx_as_installed_takes_none() -> None:
    try:
        package = find_package(("tensorrt_rtx",))
    except InputError as absent:
        pytest.skip(f"TensorRT-RTX is needed (the extra tensorrt-rtx): {absent.got}")
    if package.version.startswith("1.7."):
        with pytest.raises(InputError, match="no plugin module that loads"):
            register_plugins(package, "sm89")
    else:
        pytest.skip(f"known of TensorRT-RTX 1.7 only, here is {package.version}")
