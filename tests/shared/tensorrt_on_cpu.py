"""TensorRT engines opened on the CPU, with ONNX Runtime in TensorRT's place."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from blockwright.compile.decoder import decoder_graph
from blockwright.compile.flavour import Flavour
from blockwright.compile.tensorrt_engine import TensorRtEngine, token_ranges
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import FP32, Model
from onnxruntime_executor import OnnxRuntimeExecutor


def open_on_cpu(
    model: Model, slots: int, is_decomposed: bool = False
) -> tuple[TensorRtDecoder, OnnxRuntimeExecutor, PreTrainedModel]:
    """An engine of random weights, what runs it, and the same child in torch."""
    weights = {name: 8 * array if array.ndim == 2 else array for name, array in random_weights(model, seed=1).items()}
    flavour = Flavour(name="decomposed" if is_decomposed else "standard", slots=slots)
    graph = decoder_graph(replace(model, embedding_weights=FP32), weights, slots, flavour)
    executor = OnnxRuntimeExecutor(graph.SerializeToString())
    child = build_child(model, hf_config(model))
    loaded = load_weights(child, {name: torch.from_numpy(array) for name, array in weights.items()})
    return TensorRtDecoder(engine_of(model, slots, is_decomposed), executor), executor, loaded


def engine_of(model: Model, slots: int, is_decomposed: bool = False) -> TensorRtEngine:
    """A description of an engine, as if it had been built."""
    return TensorRtEngine(
        schema_version=1,
        target="tensorrt",
        package="tensorrt_rtx",
        package_version="1.7.1",
        compute_capabilities=("sm86", "sm120"),
        format="fp32",
        activations="float32",
        form="decomposed" if is_decomposed else "fused",
        model=model,
        num_positions=slots,
        slots=slots,
        most_sequences=3,
        profiles=token_ranges(slots),
        census={},
        is_attention_decomposed=False,
        weight_bytes=0,
        build_s=0.0,
        stop_ids=(),
        start_id=None,
        files={},
        built_from="digest",
        versions={},
    )
