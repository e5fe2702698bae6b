"""Memory is predicted near what a run takes, and refused with what would fit."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from blockwright.count import parameters
from blockwright.errors import InputError
from blockwright.spec import Attention, Block, Full, GatedFFN, LinearMixer, Model, NoOp, Rope
from blockwright.train import memory
from blockwright.train.distill import GkdSettings
from blockwright.train.losses import kl_and_cosine
from blockwright.train.memory import Work, check_memory, predict_memory

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

_RUN = """
import resource, sys, tempfile, torch
from dataclasses import replace
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from blockwright.train.distill import GkdSettings, distill
from blockwright.train.quality import compare_windows
from blockwright.train.windows import Windows
parts, recomputes, is_judged = int(sys.argv[1]), *(flag == "True" for flag in sys.argv[2:4])
optimizer, precision = sys.argv[4:]
def resident():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()
def run(hidden, vocab, windows):
    config = AutoConfig.for_model("llama", vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256,
        tie_word_embeddings=False)
    child, parent = (AutoModelForCausalLM.from_config(config, attn_implementation="sdpa") for _ in range(2))
    if is_judged:
        ids_NT = torch.randint(0, vocab, (8, 512))
        return compare_windows(child, parent, Windows(ids_NT=ids_NT, document_N=None, bytes_per_token=1))
    batches = [torch.randint(0, vocab, (windows, 128)) for _ in range(2)]
    settings = GkdSettings(learning_rate=1e-3, checkpoint_steps=100, parts=parts, recomputes_activations=recomputes,
        optimizer=optimizer, precision=precision)
    distill(child, parent, batches, settings, Path(tempfile.mkdtemp()) / "state")
run(16, 64, 1)
before = resident()
run(256, 4096, 16)
status = open('/proc/self/status').read()  # a peak of its own: getrusage hands on that of the process that forked
print(1024 * int(status.split('VmHWM:')[1].split()[0]) - before)
"""


_STEP = """
import resource, torch
from pathlib import Path
from blockwright.train.muon import Muon, workspace_bytes
def matrices(count, size):
    found = [torch.nn.Parameter(torch.ones(size, size)) for _ in range(count)]
    for matrix in found:
        matrix.grad = torch.ones(size, size)
    return found
Muon(matrices(2, 32), lr=0.1).step()
optimizer = Muon(matrices(400, 256), lr=0.1)
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
optimizer.step()
peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print((peak - before - 4 * 400 * 256**2) / workspace_bytes([(256, 256)] * 400))
"""


def _peak(settings: GkdSettings, *, is_judged: bool = False) -> int:
    flags = (settings.parts, settings.recomputes_activations, is_judged, settings.optimizer, settings.precision)
    command = [sys.executable, "-c", _RUN, *map(str, flags)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
    found = subprocess.run([sys.executable, "-c", _STEP], check=True, capture_output=True, text=True).stdout
    assert 0.7 < float(found) < 1.5


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
