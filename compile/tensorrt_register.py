"""Registers our kernels with TensorRT, which puts them into plans: compiled ahead of time, no Python where a plan runs.

For programs that build networks of their own; the engines of `tensorrt_engine.py` use none of them. TensorRT asks for
them by `tensorrt.plugin` (quick-deployable plugins, `aot_impl`), which TensorRT-RTX 1.7.1 has not. Nobody has built a
plan with them yet; tests answer a stand-in for that module.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blockwright.compile.kernel_build import check_capability, compile_kernel
from blockwright.compile.kernels import Number
from blockwright.compile.tensorrt_package import Package, version_numbers
from blockwright.compile.tensorrt_plugins import NAMESPACE, PLUGINS, Given, Plugin, extents_of
from blockwright.errors import InputError

_READS_ELEMENTS = (11, 4)
"""The first version of TensorRT that is known to."""


def plugin_module(package: Package) -> Any:
    """TensorRT's module for plugins in Python.

    Raises:
        InputError: this TensorRT has none, or none that takes compiled kernels.
    """
    try:
        module = importlib.import_module(f"{package.name}.plugin")
    except ImportError as error:
        raise _lacking(package, f"no plugin module that loads ({error})") from error
    if not hasattr(module, "aot_impl"):
        raise _lacking(package, "a plugin module that takes no compiled kernels (aot_impl)")
    return module


def register_plugins(package: Package, capability: str) -> tuple[str, ...]:
    """Makes our kernels known to TensorRT in this process, once; compiled when a plan is built.

    Args:
        package: TensorRT 10.15 or later.
        capability: of the GPU that plans are built for, as ``sm90``.

    Returns:
        Names of the plugins, as ``blockwright::int4_linear``.

    Raises:
        InputError: this TensorRT takes no such plugins, not with this NumPy, or kernels are not compiled for the GPU.
    """
    check_capability(capability)
    module = plugin_module(package)
    _check_numpy(package)
    known = getattr(module.op, NAMESPACE, None)
    for plugin in PLUGINS:
        if not hasattr(known, plugin.name):
            _register(plugin, module, package.trt, capability)
    return tuple(f"{NAMESPACE}::{plugin.name}" for plugin in PLUGINS)


def add_int4_linear(
    network: Any, package: Package, inputs: Sequence[Any], group: int, rows_at_once: int = 1, num_splits: int = 1
) -> Any:
    """Adds the product of activations and an int4 matrix.

    Args:
        network: an INetworkDefinition.
        package: whose plugins were registered.
        inputs: activations, planar codes as int8 or uint8, scales of shape (outputs, groups).
        group: inputs that share a scale.
        rows_at_once: 1 for single tokens; 16, 32 or 64 for more.
        num_splits: parts to cut the inputs into.

    Returns:
        The output's ITensor.
    """
    ours = getattr(plugin_module(package).op, NAMESPACE)
    sizes = {"group": group, "rows_at_once": rows_at_once}
    if num_splits == 1:
        return network.add_plugin(ours.int4_linear(*inputs, **sizes), aot=True).get_output(0)
    layer = network.add_plugin(ours.int4_linear_split(*inputs, **sizes, num_splits=num_splits), aot=True)
    is_bf16 = int(inputs[0].dtype == package.trt.DataType.BF16)
    return network.add_plugin(ours.sum_splits(layer.get_output(0), is_bf16=is_bf16), aot=True).get_output(0)


def add_sparse_decode(network: Any, package: Package, inputs: Sequence[Any], num_splits: int = 1) -> Any:
    """Adds attention of one query per sequence over a compacted cache.

    Args:
        network: an INetworkDefinition.
        package: whose plugins were registered.
        inputs: q (batch, heads, channels), k and v (batch, KV heads, slots, channels), counts (batch) in int32.
        num_splits: parts to cut each sequence's slots into, at most 64.

    Returns:
        The output's ITensor.
    """
    ours = getattr(plugin_module(package).op, NAMESPACE)
    if num_splits == 1:
        return network.add_plugin(ours.sparse_decode(*inputs), aot=True).get_output(0)
    layer = network.add_plugin(ours.sparse_decode_split(*inputs, num_splits=num_splits), aot=True)
    is_bf16 = int(inputs[0].dtype == package.trt.DataType.BF16)
    parts = (layer.get_output(0), layer.get_output(1))
    return network.add_plugin(ours.join_splits(*parts, is_bf16=is_bf16), aot=True).get_output(0)


def add_sparse_prefill(network: Any, package: Package, inputs: Sequence[Any], num_neighbours: int) -> Any:
    """Adds attention of a prompt: q, k, v, far, far_before, starts, as `kernel_ops.sparse_prefill` has them.

    Returns:
        The output's ITensor.
    """
    ours = getattr(plugin_module(package).op, NAMESPACE)
    return network.add_plugin(ours.sparse_prefill(*inputs, num_neighbours=num_neighbours), aot=True).get_output(0)


def _register(plugin: Plugin, module: Any, trt: Any, capability: str) -> None:
    name, desc = f"{NAMESPACE}::{plugin.name}", module.TensorDesc
    outputs_type = tuple.__class_getitem__((desc,) * plugin.num_outputs)

    def describe(*arguments: Any, **attributes: int) -> Any:
        given = _given(plugin, arguments[: len(plugin.inputs)], attributes, module, trt)
        types = {True: trt.DataType.FLOAT, False: _types(trt)[given.number]}
        return tuple(module.from_shape_expr(each.sides, types[each.is_fp32]) for each in plugin.outputs(given))

    def implement(*arguments: Any) -> Any:
        count = len(plugin.inputs)
        attributes = dict(zip(plugin.attributes, arguments[count : count + len(plugin.attributes)], strict=True))
        given = _given(plugin, arguments[:count], attributes, module, trt)
        kernel, sizes = plugin.kernel(given), plugin.sizes(given)
        made = compile_kernel(kernel, capability)
        grid = extents_of(kernel, sizes, module.cdiv)
        launch = module.KernelLaunchParams(*grid, 32 * kernel.num_warps, 1, 1, made.shared_bytes)
        numbers = [sizes[each.name] for each in kernel.arguments if each.type == "i32"]
        extra = module.SymIntExprs(len(numbers))
        for index, number in enumerate(numbers):
            extra[index] = module.SymInt32(number)
        return made.entry, made.ptx, launch, extra

    given_types = {each: desc for each in plugin.inputs} | dict.fromkeys(plugin.attributes, int)
    answer = tuple.__class_getitem__((str, str, module.KernelLaunchParams, module.SymIntExprs))
    module.register(name)(_signed(describe, given_types, outputs_type))
    module.aot_impl(name)(_signed(implement, given_types | {"outputs": outputs_type, "tactic": int}, answer))


def _signed(function: Callable[..., Any], types: dict[str, Any], answer: Any) -> Callable[..., Any]:
    """The function with a signature, by which TensorRT tells inputs from attributes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=type_) for name, type_ in types.items()]
    function.__signature__ = inspect.Signature(parameters, return_annotation=answer)  # type: ignore[attr-defined]
    return function


def _given(plugin: Plugin, tensors: Sequence[Any], attributes: dict[str, int], module: Any, trt: Any) -> Given:
    if "is_bf16" in plugin.attributes:
        number: Number = "bf16" if attributes["is_bf16"] else "fp16"
    else:
        number = _number_of(tensors[0].dtype, plugin, trt)
    shapes = {name: tuple(tensor.shape_expr) for name, tensor in zip(plugin.inputs, tensors, strict=True)}
    return Given(shapes=shapes, attributes=attributes, number=number, divide_up=module.cdiv)


def _types(trt: Any) -> dict[Number, Any]:
    return {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}


def _number_of(dtype: Any, plugin: Plugin, trt: Any) -> Number:
    for number, known in _types(trt).items():
        if dtype == known:
            return number
    raise InputError(
        f"{NAMESPACE}::{plugin.name}",
        got=f"activations in {dtype}",
        expected="fp16 or bf16",
        remedy="Cast them before the plugin.",
    )


def _check_numpy(package: Package) -> None:
    """Refuses a TensorRT that reads attributes in a way that NumPy has given up.

    `tensorrt.plugin` of 10.15.1 makes a number of an array that holds one, that of 11.4 asks for its element; those
    between were not looked at.

    Raises:
        InputError: it is older than 11.4, and NumPy refuses this.
    """
    if version_numbers(package.version) >= _READS_ELEMENTS:
        return
    try:
        int(np.array([1]))  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(
            "tensorrt",
            got=f"{package.title} with NumPy {np.__version__}, which its plugins cannot read attributes with ({error})",
            expected="TensorRT 11.4 or later, or an older NumPy",
            remedy="pip install -U tensorrt, or pip install 'numpy<2.1'.",
        ) from error


def _lacking(package: Package, what: str) -> InputError:
    return InputError(
        "tensorrt",
        got=f"{package.title} with {what}",
        expected="TensorRT 10.15 or later, whose plugins in Python may be compiled ahead of time (aot_impl)",
        remedy="Build on the GPU with it: pip install 'blockwright[tensorrt]'; or launch the files of blockwright "
        "kernels from a program of your own.",
    )
