"""Quality is measured window by window, as its definitions say."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from blockwright.model.divergence import kl_divergence
from blockwright.spec import Model
from blockwright.train import quality
from blockwright.train.quality import compare, compare_windows
from blockwright.train.windows import Windows

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
IDS_NT = torch.randint(0, 64, (11, 9), generator=torch.Generator().manual_seed(5))
WINDOWS = Windows(ids_NT=IDS_NT, document_N=np.arange(11), bytes_per_token=2.5)


def test_a_model_beside_itself_loses_nothing(make_parent: MakeParent) -> None:
    model, _ = make_parent()
    found = compare(model, model, WINDOWS)
    assert found.kl.value == found.kl.high == 0
    assert found.agreement.value == found.agreement.low == 1
    assert found.bits_per_byte == found.parent_bits_per_byte
    assert found.bits_per_byte_ratio.low == found.bits_per_byte_ratio.high == 1


@torch.no_grad()
def test_every_figure_is_what_its_definition_gives_token_by_token(make_parent: MakeParent) -> None:
    child, _ = make_parent("qwen2")
    parent, _ = make_parent("llama")
    kl, child_nats, parent_nats, agreements = 0.0, 0.0, 0.0, 0
    for ids_T in IDS_NT:
        q_TV, p_TV = (model(ids_T[None]).logits[0].double().softmax(-1) for model in (child, parent))
        for position in range(8):
            p, q, following = p_TV[position], q_TV[position], ids_T[position + 1]
            kl += (p * (p / q).log()).sum().item()
            child_nats -= q[following].log().item()
            parent_nats -= p[following].log().item()
            agreements += int(p.argmax() == q.argmax())
    found = compare(child, parent, WINDOWS)
    num_tokens = 11 * 8
    assert found.kl.value == pytest.approx(kl / num_tokens, rel=1e-5)
    assert found.bits_per_byte.value == pytest.approx(child_nats / num_tokens / math.log(2) / 2.5, rel=1e-5)
    assert found.parent_bits_per_byte.value == pytest.approx(parent_nats / num_tokens / math.log(2) / 2.5, rel=1e-5)
    assert found.bits_per_byte_ratio.value == pytest.approx(child_nats / parent_nats, rel=1e-5)
    assert found.agreement.value == pytest.approx(agreements / num_tokens)
    assert found.kl.num_values == 11
    assert found.kl.low < found.kl.value < found.kl.high


@torch.no_grad()
def _compare_whole(child: PreTrainedModel, parent: PreTrainedModel, ids_NT: Tensor) -> list[np.ndarray]:
    """The twin of `compare_windows` that holds all logits at once."""
    child_NTV, parent_NTV = (model(ids_NT, use_cache=False).logits[:, :-1] for model in (child, parent))
    columns = [
        kl_divergence(parent_NTV, child_NTV),
        cross_entropy(child_NTV.mT, ids_NT[:, 1:], reduction="none"),
        cross_entropy(parent_NTV.mT, ids_NT[:, 1:], reduction="none"),
        (child_NTV.argmax(-1) == parent_NTV.argmax(-1)).float(),
    ]
    return [column.mean(dim=1).numpy() for column in columns]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_what_all_logits_at_once_do(
    chunk: int, make_parent: MakeParent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "CHUNK_TOKENS", chunk)
    child, parent = make_parent("qwen2")[0], make_parent("llama")[0]
    found = compare_windows(child, parent, WINDOWS)
    columns = (found.kl_N, found.child_nats_N, found.parent_nats_N, found.agreement_N)
    for column_N, whole_N in zip(columns, _compare_whole(child, parent, IDS_NT), strict=True):
        np.testing.assert_allclose(column_N, whole_N, rtol=1e-6, atol=1e-6)


class _LargestLogits(TorchDispatchMode):
    """Notes the most tokens whose logits, or anything of their size, one operation writes."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.ndim and found.shape[-1] == self.vocab_size:
            self.rows = max(self.rows, found.numel() // self.vocab_size)
        return found


def test_no_more_logits_are_held_than_those_of_a_chunk(
    make_parent: MakeParent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "CHUNK_TOKENS", 40)  # more than the head transposed has rows
    child, parent = make_parent("qwen2", vocab_size=67)[0], make_parent("llama", vocab_size=67)[0]
    for length in (9, 65):
        ids_NT = torch.randint(0, 67, (11, length), generator=torch.Generator().manual_seed(5))
        windows = Windows(ids_NT=ids_NT, document_N=np.arange(11), bytes_per_token=2.5)
        with _LargestLogits(67) as largest:
            compare_windows(child, parent, windows)
        assert largest.rows == 40
    with _LargestLogits(67) as largest:
        _compare_whole(child, parent, ids_NT)
    assert largest.rows == 11 * 65
