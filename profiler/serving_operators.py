"""What one device of a server does in one step: a model's operators as runtimes fuse, store and share them out.

Query, key and value are one product, and so are gate and up. Tensor parallel splits every product but the last of a
mixer or an ffn by its outputs and that last one by its inputs (Megatron-LM, arXiv 1909.08053), so that a layer ends in
two all-reduces; heads of keys and values are copied where there are fewer than devices.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blockwright.errors import InputError
from blockwright.hw_profiles.ceilings import Ceilings
from blockwright.hw_profiles.profile import Point
from blockwright.profiler.operators import (
    Attend,
    Elementwise,
    Matmul,
    Operator,
    ffn_operators,
    mixer_operators,
    shared_operators,
)
from blockwright.spec import Format, Model, NoOp, with_format


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a runtime keeps a model's weights, and what it multiplies them as."""

    name: str
    bits: float
    """Of a weight of the layers, scales included."""
    head_bits: float
    products: tuple[str, ...]
    """Formats of the products, the first that a device has a rate of."""
    kv_bytes_per_value: int = 2

    @property
    def is_packed(self) -> bool:
        """Whether weights are unpacked by arithmetic before they are multiplied."""
        return self.bits < 16 and "fp8" not in self.products

    def product_on(self, ceilings: Ceilings) -> str:
        """The format of the products on a device.

        Raises:
            InputError: the device has none of them.
        """
        for product in self.products:
            if product in ceilings.flop_per_s:
                return product
        raise InputError(
            "storage",
            got=f"{self.name} on a device with rates of {', '.join(sorted(ceilings.flop_per_s))}",
            expected="a device with a rate of " + " or ".join(self.products),
            remedy="Choose another storage, or add the rate from the datasheet.",
        )


STORAGES = {
    storage.name: storage
    for storage in (
        Storage(name="fp32", bits=32, head_bits=32, products=("fp32",), kv_bytes_per_value=4),
        Storage(name="bf16", bits=16, head_bits=16, products=("bf16", "fp16", "fp32")),
        Storage(name="fp16", bits=16, head_bits=16, products=("fp16", "bf16", "fp32")),
        Storage(name="int4-g128", bits=4.25, head_bits=16, products=("bf16", "fp16", "fp32")),  # AWQ, GPTQ
        Storage(name="q4f16", bits=4.5, head_bits=4.5, products=("fp16", "bf16", "fp32")),  # MLC's q4f16_1
        Storage(name="fp8", bits=8, head_bits=16, products=("fp8", "bf16", "fp16")),
        # llama.cpp's ggml-common.h: 34 bytes for 32 weights; 144 and 210 for 256. Q4_K_M keeps the head and half of the
        # value and down projections in Q6_K (llama.cpp, llama-quant.cpp).
        Storage(name="q8_0", bits=8.5, head_bits=8.5, products=("fp16", "bf16", "fp32")),
        Storage(name="q4_k_m", bits=4.8, head_bits=6.5625, products=("fp16", "bf16", "fp32")),
    )
}


_BF16 = Format(name="bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Tokens that a server works on at once."""

    sequences: int
    """That write one token each."""
    context: int
    """Tokens that each of them attends to."""
    prompts: int = 0
    """That are read in the same step."""
    prompt_tokens: int = 0
    """Of each of them."""

    def __post_init__(self) -> None:
        numbers = (self.sequences, self.context, self.prompts, self.prompt_tokens)
        if min(numbers) < 0 or not self.rows:
            raise InputError("step", got=self, expected="sequences or a prompt, none below 0", remedy="Mend the load.")
        if self.sequences and not self.context:
            raise InputError("step.context", got=0, expected="at least the token itself", remedy="Give 1 or more.")

    @property
    def rows(self) -> int:
        """Of activations."""
        return self.sequences + self.prompts * self.prompt_tokens


def step_operators(model: Model, step: Step, storage: Storage, product: str, num_devices: int = 1) -> Counter[Operator]:
    """What one of the devices does in a step, and how often: layers that are alike are one.

    Args:
        model: in any format; the storage's counts.
        step: tokens worked on at once.
        storage: how weights are kept.
        product: the format that they are multiplied in, one of the storage's.
        num_devices: that share every layer.

    Raises:
        InputError: heads cannot be shared out among so many devices.
    """
    if num_devices < 1 or model.num_heads % num_devices:
        raise InputError(
            "num_devices",
            got=num_devices,
            expected=f"a number that divides {model.num_heads} heads",
            remedy="Share the model among fewer devices.",
        )
    model = with_format(model, _BF16)
    point = Point(batch=step.rows, new_tokens=1, slots=max(step.context, step.prompt_tokens, 1))
    counted: Counter[Operator] = Counter()
    for block, times in Counter(model.layers).items():
        for part in (
            mixer_operators(model, block.mixer, point),
            ffn_operators(model, block.ffn, point),
        ):
            for operator in _shared_out(part, step, storage, product, num_devices):
                counted[operator] += times
    heads = replace(point, batch=step.sequences + step.prompts)
    moved, head = shared_operators(model, heads)
    assert isinstance(head, Matmul)
    head = replace(head, outputs=-(-head.outputs // num_devices))
    counted.update([moved, _stored(head, product, storage.head_bits)])
    return counted


def num_all_reduces(model: Model) -> int:
    """In one step of tensor parallel: one for each mixer and ffn that does something."""
    return sum((not isinstance(b.mixer, NoOp)) + (not isinstance(b.ffn, NoOp)) for b in model.layers)


def _shared_out(
    part: Sequence[Operator], step: Step, storage: Storage, product: str, num_devices: int
) -> Iterable[Operator]:
    matmuls = [operator for operator in part if isinstance(operator, Matmul)]
    if matmuls:
        *first, last = matmuls
        if first:
            outputs = sum(operator.outputs for operator in first)
            yield _stored(replace(first[0], outputs=-(-outputs // num_devices)), product, storage.bits)
        yield _stored(replace(last, inputs=-(-last.inputs // num_devices)), product, storage.bits)
    for operator in part:
        if isinstance(operator, Elementwise):
            yield operator
        if isinstance(operator, Attend):
            yield from _attends(replace(operator, bytes_per_value=_value_bytes(product)), step, storage, num_devices)


def _attends(attend: Attend, step: Step, storage: Storage, num_devices: int) -> Iterable[Attend]:
    """Of sequences and of prompts, each as far as it is long and no further than the layer's window."""
    mine = replace(
        attend,
        num_heads=attend.num_heads // num_devices,
        num_kv_heads=max(1, attend.num_kv_heads // num_devices),
        kv_bytes_per_value=storage.kv_bytes_per_value,
        is_causal=True,
    )
    if step.sequences:
        yield replace(mine, batch=step.sequences, context=min(step.context, attend.context))
    if step.prompts * step.prompt_tokens:
        context = min(step.prompt_tokens, attend.context)
        yield replace(mine, batch=step.prompts, new_tokens=step.prompt_tokens, context=context)


def _stored(matmul: Matmul, product: str, bits: float) -> Matmul:
    num_bytes = round(matmul.inputs * matmul.outputs * bits / 8)
    return replace(matmul, weights=product, weight_bytes=num_bytes, bytes_per_value=_value_bytes(product))


def _value_bytes(product: str) -> int:
    """Of an activation: what multiplies fp32 keeps it."""
    return 4 if product == "fp32" else 2
