"""What runtimes take beyond weights and caches, where nobody measured it on this device. Never nothing.

While a prompt is read the largest layer's activations are alive at once. That much is counted from structure; how many
times over a runtime keeps it, and what it takes besides, is a rule of thumb for each class, wide on purpose:

class           times (low, mid, high)   besides (low, mid, high)    from
server          1, 2, 4                  0.5, 3.5, 5 GB              aiconfigurator's other memory of a server, 3.5 GB
compiled        1, 2, 4                  0.2, 1, 3.5 GB              judgement: context and engine, below a server's
eager           1, 3, 8                  0.3, 0.7, 3.5 GB            judgement: CUDA's context and torch's allocator
streamed        0.5, 2, 4                10 MB, 150 MB, 0.6 GB       judgement: llama.cpp's compute buffers
engine          0.5, 4.5, 16             0, 0, 50 MB                 4.3 to 4.7 times in the shipped profile

The last one also may pack its weights anew beside the stored ones, up to once (ONNX Runtime does it for fp32 products).
"""

from dataclasses import dataclass
from typing import Literal

from blockwright.compile.slots import chunks_of, slots_for
from blockwright.cost import Cost, Load
from blockwright.spec import Attention, GatedFFN, Model

WorkspaceClass = Literal["server", "compiled", "eager", "streamed", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    times: tuple[float, float, float]
    besides_bytes: tuple[float, float, float]
    packed_share: float = 0.0
    """Of the weights, that may be kept a second time at most."""


_RULES: dict[WorkspaceClass, _Rule] = {
    "server": _Rule(times=(1, 2, 4), besides_bytes=(0.5e9, 3.5e9, 5e9)),
    "compiled": _Rule(times=(1, 2, 4), besides_bytes=(0.2e9, 1e9, 3.5e9)),
    "eager": _Rule(times=(1, 3, 8), besides_bytes=(0.3e9, 0.7e9, 3.5e9)),
    "streamed": _Rule(times=(0.5, 2, 4), besides_bytes=(10e6, 150e6, 0.6e9)),
    "engine": _Rule(times=(0.5, 4.5, 16), besides_bytes=(0, 0, 50e6), packed_share=1.0),
}


def modelled_workspace(kind: WorkspaceClass, model: Model, load: Load, weight_bytes: float) -> Cost:
    """Bytes beyond weights and caches.

    Args:
        kind: the class of the runtime.
        model: the parent.
        load: the workload.
        weight_bytes: all weights as stored.
    """
    rule, live = _RULES[kind], live_bytes(model, load)
    low, value, high = (times * live + more for times, more in zip(rule.times, rule.besides_bytes, strict=True))
    return Cost(value=value, low=low, high=high + rule.packed_share * weight_bytes, origin="modelled")


def live_bytes(model: Model, load: Load) -> int:
    """Activations in fp32 of the largest layer while a chunk of the prompts is read, and the logits."""
    tokens, slots = load.batch * chunks_of(load.prompt_tokens)[0], slots_for(load.total_tokens)
    query = model.num_heads * model.head_dim
    of_layers = [model.hidden_size]
    for block in model.layers:
        if isinstance(block.ffn, GatedFFN):
            of_layers.append(3 * block.ffn.width)
        if isinstance(block.mixer, Attention):
            kv = 2 * block.mixer.num_kv_heads * model.head_dim
            of_layers.append(2 * query + kv + model.num_heads * slots)
    return 4 * (tokens * (2 * model.hidden_size + max(of_layers)) + load.batch * model.vocab_size)
