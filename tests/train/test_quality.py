"""Quality is measured window by window, as its definitions say."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blockwright.spec import Model
from blockwright.train.quality import compare
from blockwright.train.windows import Windows

MakeParent = Callable[..., tuple[PreTrainedModel, Model]]
IDS_NT = torch.randint(0, 64, (11, 9), generator=torch.Generator().manual_seed(5))
WINDOWS = Windows(ids_NT=IDS_NT, document_N=np.arange(11), bytes_per_token=2.5)


def test_a_model_beside_itself_loses_nothing(make_parent: MakeParent) -> None:
    model, _ = make_parent()
    quality = compare(model, model, WINDOWS)
    assert quality.kl.value == quality.kl.high == 0
    assert quality.agreement.value == quality.agreement.low == 1
    assert quality.bits_per_byte == quality.parent_bits_per_byte
    assert quality.bits_per_byte_ratio.low == quality.bits_per_byte_ratio.high == 1


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
    quality = compare(child, parent, WINDOWS)
    num_tokens = 11 * 8
    assert quality.kl.value == pytest.approx(kl / num_tokens, rel=1e-5)
    assert quality.bits_per_byte.value == pytest.approx(child_nats / num_tokens / math.log(2) / 2.5, rel=1e-5)
    assert quality.parent_bits_per_byte.value == pytest.approx(parent_nats / num_tokens / math.log(2) / 2.5, rel=1e-5)
    assert quality.bits_per_byte_ratio.value == pytest.approx(child_nats / parent_nats, rel=1e-5)
    assert quality.agreement.value == pytest.approx(agreements / num_tokens)
    assert quality.kl.num_values == 11
    assert quality.kl.low < quality.kl.value < quality.kl.high
