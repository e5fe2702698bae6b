"""Documents packed into one window do not see each other: each is as if it were alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from blockwright.model.walk import Walk, positions_within

CONFIGS = {
    "llama": ("llama", {}),
    "mistral, window of 4": ("mistral", {"sliding_window": 4}),
    "qwen2, windows in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
}
SEGMENTS_BT = torch.tensor([[0] * 7 + [1] + [2] * 4 + [3] * 12, [5] * 24])
"""Documents of 7, 1, 4 and 12 tokens; and a window that is one document."""


def _logits(walk: Walk, ids_BT: Tensor) -> Tensor:
    x_BTD = walk.embed(ids_BT)
    for layer in range(len(walk.layers)):
        x_BTD = walk.feed(layer, walk.mix(layer, x_BTD))
    return walk.logits(x_BTD)


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_documents_are_as_if_each_were_alone(
    kind: str, tiny_config: Callable[..., PreTrainedConfig], random_model: Callable[..., PreTrainedModel]
) -> None:
    family, changes = CONFIGS[kind]
    model = random_model(tiny_config(family, **changes))
    ids_BT = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))
    packed = _logits(Walk(model, SEGMENTS_BT), ids_BT)
    for row, segments_T in enumerate(SEGMENTS_BT):
        for segment in segments_T.unique():
            alone = model(ids_BT[row : row + 1, segments_T == segment], use_cache=False).logits[0]
            torch.testing.assert_close(packed[row, segments_T == segment], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(packed[0, 7:], _logits(Walk(model), ids_BT)[0, 7:], atol=1e-2)


def test_gradients_do_not_cross_documents(
    tiny_config: Callable[..., PreTrainedConfig], random_model: Callable[..., PreTrainedModel]
) -> None:
    walk = Walk(random_model(tiny_config("mistral", sliding_window=4)), SEGMENTS_BT[:1])
    x_BTD = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y_BTD = walk.layer(0, x_BTD)
    y_BTD[:, 12:].sum().backward()
    assert x_BTD.grad is not None
    assert (x_BTD.grad[:, :12] == 0).all() and (x_BTD.grad[:, 12:] != 0).any(dim=-1).all()


def test_positions_begin_anew_in_each_segment() -> None:
    segments_BT = torch.tensor([[4, 4, 4, 9, 2, 2], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 5]])
    wanted = [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]]
    assert positions_within(segments_BT).tolist() == wanted
