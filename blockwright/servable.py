"""Which engines can load a child as it is, and what stands in the way where they can't.

From the loaders' own code: vLLM 0.33 ``nemotron_nas.py``, SGLang ``nemotron_nas.py``, TensorRT-LLM
``modeling_nemotron_nas.py`` (read 2026-08), and the code that these make rotary embeddings with (read 2026-11). They
load the checkpoint itself. llama.cpp loads the GGUF file that `compile/export_gguf.py` writes of it; what stands in its
way was found by loading such files (2026-11, build of October). Its own converter reads less: it loses the scaling of
positions, and tokenizers that are not Llama's. ``ours`` is what `compile/` builds for ONNX Runtime; onnxruntime-genai
loads the same graph in its contrib flavour (0.18 did so with children of every kind of block, 2026-11). ``tensorrt`` is
what `compile/` builds for TensorRT (`servable_tensorrt`).

A rotary embedding counts as read only where it comes out as transformers computes it: the frequencies of ``dynamic``
grow with the text there and stay fixed everywhere else.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from blockwright import servable_tensorrt
from blockwright.errors import InputError
from blockwright.spec import (
    FP16,
    Attention,
    Format,
    FormatName,
    Full,
    GatedFFN,
    LinearFFN,
    LinearMixer,
    Model,
    NoOp,
    with_format,
)

Engine = Literal["transformers", "vllm", "sglang", "tensorrt-llm", "llama.cpp", "onnxruntime-genai", "tensorrt", "ours"]

ENGINES: tuple[Engine, ...] = get_args(Engine)

READERS: tuple[Engine, ...] = tuple(engine for engine in ENGINES if engine != "ours")
"""Engines that load the checkpoint, or what is written of it."""

NEMOTRON_NAS: frozenset[Engine] = frozenset({"vllm", "sglang", "tensorrt-llm"})
"""Engines that load a child's checkpoint as it is, by the name `DeciLMForCausalLM`."""

NEED_ATTENTION: frozenset[Engine] = frozenset({"vllm", "sglang", "tensorrt-llm", "llama.cpp"})
"""Engines that load no model without any attention."""

ATTENTION_FIRST: frozenset[Engine] = frozenset({"vllm", "sglang", "llama.cpp"})
"""Engines in which no ffn may come before the first attention.

In vLLM and SGLang layers hand on the residual beside the hidden states; it is None at first, and only attention sets
it. A norm without a residual returns one tensor, where that of the ffn expects two. Layers with neither mixer nor ffn
hand None on. llama.cpp reads no size of a head where the first layer of the file has none.
"""

BUILDABLE: tuple[FormatName, ...] = ("fp32", "int8", "int4")
"""Formats that our engines compute in as they are stored: those that profiles time and searches choose among."""

STORABLE: tuple[FormatName, ...] = ("fp32", "fp16", "int8", "int4")
"""Formats in which `compile/graph.py` stores weights; it would store any other as fp32 under a false name.

fp16 halves the file and nothing else, for the CPU computes in fp32: weights are widened when the engine is opened.
"""

SCORABLE: tuple[FormatName, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
"""Formats that candidates' weights are rounded to when they are scored: those that engines of some target store."""

_ROPES: dict[Engine, tuple[str, ...]] = {
    "vllm": ("default", "linear", "llama3", "yarn"),
    "sglang": ("default", "linear", "llama3", "yarn"),
    "tensorrt-llm": ("default", "linear", "llama3", "yarn"),
    "llama.cpp": ("default", "linear", "llama3", "yarn"),
    "onnxruntime-genai": ("default", "linear", "llama3", "yarn"),
    "tensorrt": ("default", "linear", "llama3", "yarn"),
    "ours": ("default", "linear", "llama3", "yarn"),
}
"""Ways to scale positions that each engine reads: from GGUF, or transformers 5's ``rope_parameters``."""

_FFN_FIRST: dict[Engine, str] = {
    "vllm": "an ffn before the first attention breaks the residual",
    "sglang": "an ffn before the first attention breaks the residual",
    "llama.cpp": "an ffn before the first attention leaves it without the size of a head",
}

_UNREAD_BY_YARN: dict[Engine, tuple[str, ...]] = {
    "vllm": ("attention_factor", "mscale", "mscale_all_dim"),
    "sglang": ("attention_factor",),
    "tensorrt-llm": ("attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "llama.cpp": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
"""What transformers' ``yarn`` goes by and theirs does not."""

FFN_MULTIPLE = 256
"""nemotron-nas readers round ffn widths up to a multiple of this."""

HEAD_MULTIPLE = 8
"""GroupQueryAttention takes no head size that is not a multiple of this (onnxruntime 1.31)."""


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
    """For each engine that loads checkpoints, what `obstacles` says of one.

    Formats play no part: a checkpoint can be compiled in any, and every engine has one that keeps all shapes, fp16.
    """
    checkpoint = with_format(model, FP16)
    return {engine: obstacles(checkpoint, engine) for engine in READERS}


def obstacles(model: Model, engine: Engine) -> list[str]:
    """The reasons why an engine cannot load the model as it is, or ours be built from it; empty where it can."""
    found = shape_obstacles(model, engine)
    if engine in NEED_ATTENTION and not any(isinstance(block.mixer, Attention) for block in model.layers):
        found.append("no layer has attention")
    has_attention = False
    for index, block in enumerate(model.layers):
        has_attention = has_attention or isinstance(block.mixer, Attention)
        reasons = layer_obstacles(model, index, engine)
        if engine in ATTENTION_FIRST and not has_attention and not isinstance(block.ffn, NoOp):
            reasons.append(_FFN_FIRST[engine])
        found += [f"layer {index}: {reason}" for reason in reasons]
    return found + (servable_tensorrt.network_obstacles(model) if engine == "tensorrt" else [])


def shape_obstacles(model: Model, engine: Engine) -> list[str]:
    """What stands in the way whatever the layers are."""
    if engine == "transformers":
        return []
    found = []
    if model.activation != "silu":
        found.append("its loader has no other activation than SiLU")
    if engine == "tensorrt":  # stores the embedding in what it computes in, whatever its format is here
        return found
    if engine in ("onnxruntime-genai", "ours"):
        found += _format_obstacles("the embedding", model.embedding_weights)
        return found + (_format_obstacles("the head", model.head_weights) if model.head_weights else [])
    if model.has_qk_norm:
        found.append("its loader has no norms on queries and keys")
    if engine == "llama.cpp":
        return found + _rope_obstacles(model, engine)
    if model.has_qkv_bias or model.has_output_bias or model.has_ffn_bias:
        found.append("its loader expects projections without biases")
    if model.head_dim * model.num_heads != model.hidden_size:
        found.append("its loader derives the head size from the hidden size, and here they differ")
    return found + _rope_obstacles(model, engine)


def layer_obstacles(model: Model, index: int, engine: Engine) -> list[str]:
    """What stands in the way of one layer, whatever the others are."""
    return [reason for rule in _LAYER_RULES[engine] for reason in rule(model, index)]


def _rope_obstacles(model: Model, engine: Engine) -> list[str]:
    rope, known = model.rope, _ROPES[engine]
    if rope.scaling not in known:
        return [f"a rotary embedding scaled by {rope.scaling} is not read, only {', '.join(known)}"]
    unread = [name for name, _ in rope.parameters if name in _UNREAD_BY_YARN.get(engine, ())]
    if rope.scaling == "yarn" and unread:
        return [f"its rotary embedding does not read {', '.join(unread)} of yarn"]
    return []


def _format_obstacles(name: str, weights: Format) -> list[str]:
    if weights.name in STORABLE:
        return []
    return [f"{name} in {weights} is not stored, only in {', '.join(STORABLE)}"]


def _vllm_obstacles(model: Model, index: int) -> list[str]:
    block = model.layers[index]
    is_linear = isinstance(block.mixer, LinearMixer) or isinstance(block.ffn, LinearFFN)
    return ["linear replacements are not read"] if is_linear else []


def _width_obstacles(model: Model, index: int) -> list[str]:
    ffn = model.layers[index].ffn
    if isinstance(ffn, GatedFFN) and ffn_mult_of(model.hidden_size, ffn.width) is None:
        return [f"an ffn width of {ffn.width} is no multiple of {FFN_MULTIPLE}"]
    return []


def _llama_cpp_obstacles(model: Model, index: int) -> list[str]:
    block = model.layers[index]
    if isinstance(block.ffn, LinearFFN):
        return ["a linear ffn is not read"]
    if isinstance(block.ffn, NoOp) and not isinstance(block.mixer, NoOp):
        return ["the attention of a layer with a no-op ffn is dropped"]
    if isinstance(block.mixer, LinearMixer) and (model.has_qkv_bias or model.has_output_bias):
        return ["the bias of a linear mixer is dropped"]
    return []


def _reach_obstacles(model: Model, index: int) -> list[str]:
    mixer = model.layers[index].mixer
    is_short = isinstance(mixer, Attention) and not isinstance(mixer.reach, Full)
    return ["a sliding window is not read"] if is_short else []


def _our_obstacles(model: Model, index: int) -> list[str]:
    block = model.layers[index]
    parts = (("a mixer", block.mixer), ("an ffn", block.ffn))
    found = [r for name, part in parts if not isinstance(part, NoOp) for r in _format_obstacles(name, part.weights)]
    return found + _attended_rope_obstacles(model, index)


def _attended_rope_obstacles(model: Model, index: int) -> list[str]:
    return _rope_obstacles(model, "ours") if isinstance(model.layers[index].mixer, Attention) else []


def _head_obstacles(model: Model, index: int) -> list[str]:
    if not isinstance(model.layers[index].mixer, Attention) or model.head_dim % HEAD_MULTIPLE == 0:
        return []
    return [f"heads of {model.head_dim} are no multiple of {HEAD_MULTIPLE}, as GroupQueryAttention needs"]


_LAYER_RULES: dict[Engine, tuple[Callable[[Model, int], list[str]], ...]] = {
    "transformers": (),
    "vllm": (_reach_obstacles, _vllm_obstacles),
    "sglang": (_reach_obstacles, _vllm_obstacles, _width_obstacles),
    "tensorrt-llm": (_reach_obstacles, _width_obstacles),
    "llama.cpp": (_reach_obstacles, _llama_cpp_obstacles),
    "onnxruntime-genai": (_our_obstacles, _head_obstacles),
    "tensorrt": (servable_tensorrt.layer_obstacles, _attended_rope_obstacles),
    "ours": (_our_obstacles,),
}
