"""TensorRT's module of plugins so far as we use it, for tests: TensorRT itself is not at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

from blockwright.compile.tensorrt_package import Package


class DataType(Enum):
    """TensorRT's, those that we name."""

    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT32 = 3
    UINT8 = 4


@dataclass(frozen=True)
class Symbol:
    """A size that TensorRT learns when a plan runs; multiplied from the left only, as TensorRT's."""

    value: int
    is_constant: bool = False

    def __mul__(self, other: "int | Symbol") -> "Symbol":
        return Symbol(self.value * (other if isinstance(other, int) else other.value))

    def constant_value(self) -> int:
        assert self.is_constant
        return self.value


def divide_up(first: Any, second: int) -> Symbol:
    """TensorRT's `cdiv`."""
    assert isinstance(first, Symbol), "TensorRT refuses two whole numbers"
    return Symbol(-(-first.value // second))


@dataclass
class Desc:
    """A tensor as a plugin is told of it."""

    shape_expr: Sequence[Any]
    dtype: DataType


class PluginModule(SimpleNamespace):
    """tensorrt.plugin, so far as we use it."""

    def __init__(self) -> None:
        super().__init__(op=SimpleNamespace(), described={}, implemented={})
        self.TensorDesc, self.cdiv, self.from_shape_expr, self.SymInt32 = Desc, divide_up, Desc, lambda number: number
        self.KernelLaunchParams = type("KernelLaunchParams", (tuple,), {"__new__": lambda cls, *all: tuple(all)})
        self.SymIntExprs = type("SymIntExprs", (list,), {"__init__": lambda self, n: list.__init__(self, [None] * n)})

    def register(self, name: str) -> Callable[[Any], Any]:
        space, own = name.split("::")

        def keep(function: Any) -> Any:
            assert name not in self.described, "TensorRT refuses a second one"
            self.described[name] = function
            vars(self.op).setdefault(space, SimpleNamespace())
            call = lambda *tensors, **attributes: (own, tensors, attributes)  # noqa: E731
            setattr(getattr(self.op, space), own, call)
            return function

        return keep

    def aot_impl(self, name: str) -> Callable[[Any], Any]:
        return lambda function: self.implemented.setdefault(name, function)


PACKAGE = Package(name="tensorrt", version="11.4.0", trt=SimpleNamespace(DataType=DataType))


@dataclass
class Network:
    """Keeps what is added to it."""

    added: list[tuple[str, Any, dict[str, int]]] = field(default_factory=list)

    def add_plugin(self, plugin: tuple[str, Any, dict[str, int]], aot: bool) -> Any:
        assert aot, "compiled ahead of time"
        self.added.append(plugin)
        return SimpleNamespace(get_output=lambda index: f"{plugin[0]}:{index}")
