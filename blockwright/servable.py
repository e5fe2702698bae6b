"""Which engines can load a child as it is, and what stands in the way where they can't.

From the loaders' own code: vLLM 0.33 ``nemotron_nas.py``, SGLang ``nemotron_nas.py``, TensorRT-LLM
``modeling_nemotron_nas.py``, llama.cpp's ``deci`` architecture and its converter (read 2026-08).
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from blockwright.errors import InputError
from blockwright.spec import Attention, Full, GatedFFN, LinearFFN, LinearMixer, Model, NoOp

Engine = Literal["transformers", "vllm", "sglang", "tensorrt-llm", "llama.cpp"]

ENGINES: tuple[Engine, ...] = get_args(Engine)

FFN_MULTIPLE = 256
"""nemotron-nas readers round ffn widths up to a multiple of this."""


def ffn_mult_of(hidden_size: int, width: int) -> float | None:
    """The ``ffn_mult`` from which readers get exactly `width`; None where no multiplier gives it.

    They compute 2·ffn_mult·hidden/3, cut to a whole number, then round up to a multiple of 256.
    """
    ffn_mult = 1.5 * width / hidden_size
    return ffn_mult if round_up(int(2 * ffn_mult * hidden_size / 3), FFN_MULTIPLE) == width else None


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below the value."""
    return -(-value // multiple) * multiple


def parse_engines(names: Sequence[str], field: str) -> tuple[Engine, ...]:
    """Reads engines' names; empty ones are passed over.

    Raises:
        InputError: one of them is unknown.
    """
    known: dict[str, Engine] = {engine: engine for engine in ENGINES}
    wanted = [name.strip() for name in names if name.strip()]
    for name in wanted:
        if name not in known:
            raise InputError(field, got=repr(name), expected="one of " + ", ".join(known), remedy="Correct the name.")
    return tuple(known[name] for name in dict.fromkeys(wanted))


def engine_obstacles(model: Model) -> dict[Engine, list[str]]:
    """For each engine the reasons why it cannot load the model as it is; an empty list where it can."""
    return {
        engine: shape_obstacles(model, engine)
        + [f"layer {i}: {reason}" for i in range(len(model.layers)) for reason in layer_obstacles(model, i, engine)]
        for engine in ENGINES
    }


def shape_obstacles(model: Model, engine: Engine) -> list[str]:
    """What stands in the way whatever the layers are, and where there is no attention at all."""
    if engine == "transformers":
        return []
    obstacles = []
    if model.has_qk_norm:
        obstacles.append("its loader has no norms on queries and keys")
    if model.has_qkv_bias or model.has_output_bias or model.has_ffn_bias:
        obstacles.append("its loader expects projections without biases")
    if model.activation != "silu":
        obstacles.append("its loader has no other activation than SiLU")
    if model.head_dim * model.num_heads != model.hidden_size:
        obstacles.append("its loader derives the head size from the hidden size, and here they differ")
    if not any(isinstance(block.mixer, Attention) for block in model.layers):
        obstacles.append("no layer has attention")
    return obstacles


def layer_obstacles(model: Model, index: int, engine: Engine) -> list[str]:
    """What stands in the way of one layer, whatever the others are."""
    return [reason for rule in _LAYER_RULES[engine] if (reason := rule(model, index)) is not None]


def _vllm_obstacle(model: Model, index: int) -> str | None:
    block = model.layers[index]
    if isinstance(block.mixer, LinearMixer) or isinstance(block.ffn, LinearFFN):
        return "linear replacements are not read"
    if index == 0 and isinstance(block.mixer, NoOp) and not isinstance(block.ffn, NoOp):
        return "a first layer without attention but with an ffn breaks the residual"
    return None


def _width_obstacle(model: Model, index: int) -> str | None:
    ffn = model.layers[index].ffn
    if isinstance(ffn, GatedFFN) and ffn_mult_of(model.hidden_size, ffn.width) is None:
        return f"an ffn width of {ffn.width} is no multiple of {FFN_MULTIPLE}"
    return None


def _llama_cpp_obstacle(model: Model, index: int) -> str | None:
    block = model.layers[index]
    if isinstance(block.ffn, LinearFFN):
        return "a linear ffn is not read"
    if isinstance(block.ffn, NoOp) and not isinstance(block.mixer, NoOp):
        return "the attention of a layer with a no-op ffn is dropped"
    return None


def _reach_obstacle(model: Model, index: int) -> str | None:
    mixer = model.layers[index].mixer
    if isinstance(mixer, Attention) and not isinstance(mixer.reach, Full):
        return "a sliding window is not read"
    return None


_LAYER_RULES: dict[Engine, tuple[Callable[[Model, int], str | None], ...]] = {
    "transformers": (),
    "vllm": (_reach_obstacle, _vllm_obstacle),
    "sglang": (_reach_obstacle, _vllm_obstacle, _width_obstacle),
    "tensorrt-llm": (_reach_obstacle, _width_obstacle),
    "llama.cpp": (_reach_obstacle, _width_obstacle, _llama_cpp_obstacle),
}
