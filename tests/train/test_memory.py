"""Memory is predicted near what a run takes, and refused with what would fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.spec import Attention, Block, Full, GatedFFN, LinearMixer, Model, NoOp, Rope
from blockwright.strict import to_data
from blockwright.train import memory
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import kl_and_cosine
from blockwright.train.memory import Work, check_memory, predict_memory
from forked import fork_script

SPEC = Model(
    family="llama",
    vocab_size=4096,
    hidden_size=256,
    num_heads=8,
    head_dim=32,
    max_positions=256,
    norm_eps=1e-5,
    rope=Rope(theta=10000.0, scaling="default", parameters=()),
    activation="silu",
    has_tied_embeddings=False,
    has_qkv_bias=False,
    has_output_bias=False,
    has_ffn_bias=False,
    has_qk_norm=False,
    layers=(Block(mixer=Attention(num_kv_heads=4, reach=Full()), ffn=GatedFFN(width=768)),) * 4,
)
SETTINGS = GkdSettings(learning_rate=1e-3, checkpoint_steps=100)
WORK = Work(child=SPEC, parent=SPEC, settings=SETTINGS, windows=16, window_tokens=128)

HERE = Path(__file__).parent


def _told(script: str, *words: object) -> float:
    code, told = fork_script(HERE / script, *words).wait()
    assert code == 0, told
    return float(told)


def _peak(settings: GkdSettings, *, is_judged: bool = False) -> float:
    return _told("peak_of_distilling.py", json.dumps(to_data(settings)), is_judged)


@pytest.mark.parametrize(
    "changes",
    [{}, {"parts": 4}, {"recomputes_activations": True}, {"optimizer": "muon"}],
)
def test_the_prediction_is_near_the_real_peak(changes: dict[str, Any]) -> None:
    work = replace(WORK, settings=replace(SETTINGS, **changes))
    assert 0.7 < _peak(work.settings) / predict_memory(work).total_bytes < 1.25


def test_the_prediction_is_near_the_real_peak_of_judging() -> None:
    predicted = predict_memory(replace(WORK, is_judged=True, window_tokens=512)).beforehand_bytes
    assert 0.7 < _peak(SETTINGS, is_judged=True) / predicted < 1.25


def test_a_step_of_muon_takes_what_is_predicted_however_many_matrices_there_are() -> None:
    assert 0.7 < _told("peak_of_muon.py") < 1.5


def test_less_is_predicted_for_every_way_to_save() -> None:
    whole = predict_memory(WORK)
    for changes in ({"parts": 4}, {"recomputes_activations": True}, {"precision": "bf16"}, {"optimizer": "muon"}):
        assert predict_memory(replace(WORK, settings=replace(SETTINGS, **changes))).total_bytes < whole.total_bytes
    small = (Block(mixer=NoOp(), ffn=NoOp()), Block(mixer=LinearMixer(), ffn=GatedFFN(width=64)))
    assert predict_memory(replace(WORK, child=replace(SPEC, layers=small))).total_bytes < whole.total_bytes
    assert predict_memory(replace(WORK, num_ranks=2)).child_bytes == whole.child_bytes / 2
    without = replace(WORK, settings=replace(SETTINGS, losses=kl_and_cosine(0)))
    assert predict_memory(without).activations_bytes < whole.activations_bytes


def test_what_is_needed_beforehand_and_of_the_parent_is_counted() -> None:
    plain = predict_memory(WORK)
    judged = predict_memory(replace(WORK, is_judged=True, window_tokens=512, windows=1))
    assert judged.beforehand_bytes == judged.total_bytes > plain.beforehand_bytes + 4 * 6 * 1024 * 4096
    longer = predict_memory(replace(WORK, is_judged=True, window_tokens=1024, windows=1))
    assert longer.beforehand_bytes - judged.beforehand_bytes < 2 * 4 * 8 * 512 * 4096  # no logits of whole windows
    looked_up = replace(WORK, has_answers=True)
    assert predict_memory(looked_up).parent_bytes == plain.parent_bytes
    without_states = replace(looked_up, settings=replace(SETTINGS, losses=kl_and_cosine(0)))
    assert predict_memory(without_states).parent_bytes == 0
    assert predict_memory(replace(WORK, masks_documents=True)).activations_bytes > plain.activations_bytes
    assert predict_memory(replace(WORK, num_ranks=2)).gathered_bytes > plain.gathered_bytes == 0
    many = predict_memory(replace(WORK, num_ranks=64, windows=1))
    assert many.afterwards_bytes > 4 * parameters(SPEC) > plain.afterwards_bytes == 0
    assert predict_memory(replace(WORK, has_gpu=True)).allocator_bytes == 0 < plain.allocator_bytes


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    need, cpu = predict_memory(WORK).total_bytes, torch.device("cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * need)
    check_memory(WORK, cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="This would fit"):
        check_memory(WORK, cpu)


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    thrifty = replace(WORK, settings=replace(SETTINGS, parts=4))
    need, cpu = predict_memory(thrifty).total_bytes, torch.device("cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.4 * need)
    assert check_memory(thrifty, cpu).total_bytes == need
    with pytest.raises(InputError, match=r"activations .* GB.*This would fit: --accumulate 4\."):
        check_memory(WORK, cpu)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e6)
    with pytest.raises(InputError, match="Even the thriftiest way takes"):
        check_memory(WORK, cpu)


def test_this_machine_has_some_memory_free() -> None:
    assert 1e6 < memory.free_bytes(torch.device("cpu")) < 1e15
