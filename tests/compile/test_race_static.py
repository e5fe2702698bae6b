"""benchmarks/gpu/race_static.py: what torch.compile makes of the peer's step and prompt."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockwright.profiler.synthetic import random_weights

SCRIPTS = Path(__file__).parents[2] / "benchmarks/gpu"
BATCH, SLOTS, PROMPT = 2, 512, 8


def _inductor_until_code(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
    """inductor as far as its last graph, which is kept and run as it is: no C++ is compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit
        inductor: Any = importlib.import_module("torch._inductor.compile_fx")

    def keep(graph: torch.fx.GraphModule, inputs: object, **options: object) -> Callable[..., Any]:
        inductor._recursive_post_grad_passes(graph, is_inference=True)
        graphs.append(graph)
        return inductor.make_boxed_func(graph.forward)

    return partial(inductor.compile_fx, inner_compile=keep)


@pytest.fixture
def room_and_graphs(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[torch.fx.GraphModule]]:
    """Caches of two texts and two heads, larger than anything else that a step or a short prompt makes."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    static, raced = (importlib.import_module(name) for name in ("race_static", "raced_models"))
    model = raced.parent_of(replace(raced.SMALL, layers=2, heads=8))
    graphs: list[torch.fx.GraphModule] = []
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend=_inductor_until_code(graphs))
    decoder = static.StaticModel(model, random_weights(model, seed=1), torch.device("cpu"))
    return static.Room(decoder, BATCH, SLOTS, compiled), graphs


def _copies(graph: torch.fx.GraphModule, most_values: int) -> list[str]:
    """What makes or fills so many values anew: neither a view nor a few rows written in place."""
    found = []
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and isinstance(node.meta["val"], torch.Tensor):
            is_in_place = node.target.is_view or node.target == torch.ops.aten.index_put_.default
            if not is_in_place and node.meta["val"].numel() >= most_values:
                found.append(str(node))
    return found


@pytest.mark.parametrize("what", ["step", "prompt"])
def test_what_inductor_compiles_writes_new_keys_in_place_and_copies_no_cache(
    room_and_graphs: tuple[Any, list[torch.fx.GraphModule]], what: str
) -> None:
    room, graphs = room_and_graphs
    ids_BT = np.arange(BATCH * PROMPT).reshape(BATCH, PROMPT)
    if what == "step":
        room.read(ids_BT)
        room.at(PROMPT, ids_BT[:, 0])
        room.step()
    else:
        room.read_fast(ids_BT)
    (graph,) = graphs
    assert "scatter" not in str(graph.graph)
    assert _copies(graph, BATCH * 2 * SLOTS * room.static.model.head_dim) == []
