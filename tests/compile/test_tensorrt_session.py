"""TensorRT's run-time session, with ONNX Runtime in TensorRT's place: the same graph on the same torch tensors."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blockwright.cli.main import main
from blockwright.compile.engine import ENGINE_FILE, StoredFile
from blockwright.compile.generate import FINISHED, Writing, generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.slots import PREFILL_CHUNK
from blockwright.compile.tensorrt_package import Package
from blockwright.compile.tensorrt_session import TensorRtDecoder, check_gpu, check_version
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, LinearMixer, NoOp, Window
from blockwright.strict import to_data
from onnxruntime_executor import OnnxRuntimeExecutor
from tensorrt_on_cpu import engine_of, open_on_cpu

SLOTS = PREFILL_CHUNK + 64
HETEROGENEOUS = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=96)),
    Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=160)),
    Block(mixer=LinearMixer(), ffn=LinearFFN()),
    Block(mixer=Attention(num_kv_heads=1, reach=Window(num_tokens=6)), ffn=NoOp()),
)
MODEL = llama(HETEROGENEOUS, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
MODELS = {"heterogeneous": MODEL, "no attention": replace(MODEL, layers=(HETEROGENEOUS[0], HETEROGENEOUS[2]))}
LONG = 3 * PREFILL_CHUNK
"""So many slots that the window goes round in fewer."""

Opened = Callable[[str], tuple[TensorRtDecoder, OnnxRuntimeExecutor, PreTrainedModel]]


@pytest.fixture(scope="module")
def opened() -> Opened:
    return lambda name: open_on_cpu(MODELS[name], SLOTS)


def _logits_by_torch(child: PreTrainedModel, texts: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [child(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy() for ids in texts]


def _check_steps(decoder: TensorRtDecoder, child: PreTrainedModel, lengths: list[int], num_steps: int) -> None:
    """Holds the logits after the prompts, and after each token behind them, against torch's."""
    texts = [np.random.default_rng(n).integers(0, 80, length + num_steps) for n, length in enumerate(lengths)]
    expected = _logits_by_torch(child, texts)
    sequences = decoder.start(len(texts), max(lengths) + num_steps)
    found_BV = sequences.prefill([ids[:length].tolist() for ids, length in zip(texts, lengths, strict=True)])
    for step in range(num_steps + 1):
        places = [length + step for length in lengths]
        wanted_BV = np.stack([logits_TV[place - 1] for logits_TV, place in zip(expected, places, strict=True)])
        np.testing.assert_allclose(found_BV, wanted_BV, atol=2e-4)
        if step < num_steps:
            found_BV = sequences.step(np.array([ids[place] for ids, place in zip(texts, places, strict=True)]))


@pytest.mark.parametrize("lengths", [[13, 1, 8], [PREFILL_CHUNK + 5, 3]])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_torch_at_every_step(name: str, lengths: list[int], opened: Opened) -> None:
    decoder, executor, child = opened(name)
    num_steps = 9
    _check_steps(decoder, child, lengths, num_steps)
    chunks = [PREFILL_CHUNK, 5] if max(lengths) > PREFILL_CHUNK else [13]
    assert executor.runs == [(0, size) for size in chunks] + [(1, 1)] * num_steps
    assert executor.num_replays == num_steps - 2, "the first step is run, the second recorded"


@pytest.mark.parametrize("is_decomposed", [False, True])
@pytest.mark.parametrize("lengths", [[2 * PREFILL_CHUNK + 400, 3, 700], [3], [2 * PREFILL_CHUNK - 4]])
def test_windows_go_round_in_short_caches(lengths: list[int], is_decomposed: bool) -> None:
    decoder, executor, child = open_on_cpu(replace(MODEL, max_positions=LONG), LONG, is_decomposed)
    _check_steps(decoder, child, lengths, 9)
    assert executor.slots_of("past_key_1") == LONG and executor.slots_of("past_key_3") == 2 * PREFILL_CHUNK


@pytest.mark.parametrize("lengths", [[13, 1, 8], [PREFILL_CHUNK + 5, 3]])
def test_keys_and_values_that_come_out_are_kept(lengths: list[int]) -> None:
    decoder, executor, child = open_on_cpu(MODEL, SLOTS, is_decomposed=True)
    assert "new_key_1" in executor.outputs and not any(name.startswith("present_") for name in executor.outputs)
    _check_steps(decoder, child, lengths, 9)
    assert executor.num_replays == 7


def test_text_is_generated_as_by_torch(opened: Opened) -> None:
    decoder, _, child = opened("heterogeneous")
    prompt = [3, 1, 4, 1, 5]
    found = [int(ids_B[0]) for ids_B in generate_ids(decoder, [prompt], 6, Sampling(temperature=0.0))]
    for _ in range(6):
        prompt.append(int(child(torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax()))
    assert found == prompt[5:]


class _DrawnOnTheHost:
    """The same sequences without their own drawing."""

    def __init__(self, decoder: TensorRtDecoder) -> None:
        self.engine, self._decoder = decoder.engine, decoder

    def start(self, batch: int, num_tokens: int) -> Writing:
        sequences = self._decoder.start(batch, num_tokens)
        return SimpleNamespace(prefill=sequences.prefill, step=sequences.step)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.9, seed=3),
        Sampling(temperature=1.3, top_k=7, top_p=0.8, seed=4),
        Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.3, seed=5),
        Sampling(repetition_penalty=1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_on_the_device_is_what_the_host_would_draw(name: str, sampling: Sampling, opened: Opened) -> None:
    decoder, executor, _ = opened(name)
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
    on_the_device = np.stack(list(generate_ids(decoder, prompts, 24, sampling)))
    assert executor.num_replays == 21, "the first token comes of the prompt, one step is run and one recorded"
    on_the_host = np.stack(list(generate_ids(_DrawnOnTheHost(decoder), prompts, 24, sampling)))
    assert (on_the_device == on_the_host).all()


def test_what_was_recorded_serves_the_next_text_too(opened: Opened) -> None:
    decoder, executor, _ = opened("heterogeneous")
    sampling, prompts = Sampling(temperature=0.9, repetition_penalty=1.2), [[3, 1, 4], [1, 5]]
    anew = [
        [ids_B.tolist() for ids_B in decoder.start(2, 40).write(prompts, 6, replace(sampling, seed=seed))]
        for seed in (1, 2)
    ]
    executor.num_replays, sequences = 0, decoder.start(2, 40)
    for seed, expected in zip((1, 2), anew, strict=True):
        found = [ids_B.tolist() for ids_B in sequences.write(prompts, 6, replace(sampling, seed=seed))]
        assert found == expected
    assert executor.num_replays == 3 + 5


def test_sequences_may_be_written_in_turn(opened: Opened) -> None:
    decoder, _, _ = opened("heterogeneous")
    alone = [[int(ids_B[0]) for ids_B in generate_ids(decoder, [prompt], 8, Sampling())] for prompt in ([3, 1], [7])]
    both = [generate_ids(decoder, [prompt], 8, Sampling()) for prompt in ([3, 1], [7])]
    in_turn = [(int(first[0]), int(second[0])) for first, second in zip(*both, strict=True)]
    assert alone == [[pair[row] for pair in in_turn] for row in range(2)]


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_short_texts_end_where_they_should(num_tokens: int, opened: Opened) -> None:
    decoder, executor, _ = opened("heterogeneous")
    assert len(list(generate_ids(decoder, [[3, 1]], num_tokens, Sampling()))) == num_tokens
    assert executor.runs == [(0, 2)] + [(1, 1)] * (num_tokens - 1)


def test_writing_ends_with_a_stop_token(opened: Opened) -> None:
    decoder, executor, _ = opened("heterogeneous")
    third = int(list(generate_ids(decoder, [[3, 1]], 9, Sampling()))[2][0])
    stopping = TensorRtDecoder(replace(decoder.engine, stop_ids=(third,)), executor)
    texts = [ids_B.tolist() for ids_B in generate_ids(stopping, [[3, 1]], 9, Sampling())]
    assert len(texts) <= 3 and texts[-1] == [FINISHED]


def test_more_sequences_than_the_engine_was_built_for_are_refused(opened: Opened) -> None:
    with pytest.raises(InputError, match=r"sequences: got 4; expected at most 3\. .*with a larger --batch"):
        opened("no attention")[0].start(4, 8)


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_what_the_last_text_left_in_its_slots_is_gone(is_decomposed: bool) -> None:
    decoder, _, _ = open_on_cpu(MODEL, SLOTS, is_decomposed)
    expected = decoder.start(1, 20).prefill([[3, 1, 4]])
    sequences = decoder.start(1, 20)
    for tensor in sequences._cache.values():
        tensor.fill_(torch.nan)
    np.testing.assert_array_equal(sequences.prefill([[3, 1, 4]]), expected)


def test_sequences_that_are_done_are_gone_at_once(opened: Opened) -> None:
    decoder, _, _ = opened("heterogeneous")
    gc.disable()  # caches on a GPU must not wait for Python to look for circles
    try:
        sequences = decoder.start(1, 20)
        list(sequences.write([[3, 1, 4]], 6, Sampling(temperature=1.0)))
        sequences.prefill([[3]])
        sequences.step(np.array([1]))
        sequences.step(np.array([1]))
        watched = [weakref.ref(sequences), *(weakref.ref(tensor) for tensor in sequences._cache.values())]
        del sequences
        assert [each() for each in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_an_engine_opens_on_the_gpus_it_was_built_for_alone() -> None:
    check_gpu(engine_of(MODEL, SLOTS), "sm120")
    with pytest.raises(InputError, match="GPU: got none that torch sees; expected a GPU of sm86, sm120"):
        check_gpu(engine_of(MODEL, SLOTS), None)
    with pytest.raises(InputError, match=r"got an sm90; expected a GPU of sm86, sm120.*--for sm90"):
        check_gpu(engine_of(MODEL, SLOTS), "sm90")


def test_a_plan_of_another_version_is_refused() -> None:
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    check_version(engine_of(MODEL, SLOTS), package)
    with pytest.raises(InputError, match=r"a plan of version 1\.7\.1; expected one of TensorRT-RTX 1\.8\.0"):
        check_version(engine_of(MODEL, SLOTS), replace(package, version="1.8.0"))


def test_a_longer_context_is_offered_where_the_model_has_one(opened: Opened) -> None:
    for max_positions, is_offered in ((SLOTS, False), (2 * SLOTS, True)):
        engine = replace(engine_of(replace(MODEL, max_positions=max_positions), SLOTS), num_positions=SLOTS)
        with pytest.raises(InputError) as found:
            TensorRtDecoder(engine, opened("no attention")[1]).start(1, SLOTS + 1)
        assert ("--context" in found.value.remedy) == is_offered


@pytest.mark.parametrize(("version", "said"), [("1.8.0", "a plan of version"), ("1.7.1", "none that torch sees")])
def test_another_version_is_told_before_a_gpu_is_missed(
    version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / ENGINE_FILE, to_data(engine_of(MODEL, SLOTS)))
    package = Package(name="tensorrt_rtx", version=version, trt=None)
    monkeypatch.setattr("blockwright.compile.tensorrt_session.find_package", lambda names: package)
    monkeypatch.setattr("blockwright.compile.tensorrt_session.gpu_capability", lambda: None)
    with pytest.raises(InputError, match=said):
        TensorRtDecoder.open(tmp_path)


def test_where_there_is_neither_gpu_nor_tensorrt_the_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(names: object) -> Package:
        raise InputError("tensorrt", got="no TensorRT", expected="one", remedy="Install it.")

    write_json(tmp_path / ENGINE_FILE, to_data(engine_of(MODEL, SLOTS)))
    monkeypatch.setattr("blockwright.compile.tensorrt_session.find_package", missing)
    for gpu, said in ((None, "none that torch sees"), ("sm86", "no TensorRT")):
        monkeypatch.setattr("blockwright.compile.tensorrt_session.gpu_capability", lambda gpu=gpu: gpu)
        with pytest.raises(InputError, match=said):
            TensorRtDecoder.open(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what is said where there is no GPU")
def test_generating_without_a_gpu_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    monkeypatch.setattr("blockwright.compile.tensorrt_session.find_package", lambda names: package)
    write_json(tmp_path / ENGINE_FILE, to_data(engine_of(MODEL, SLOTS)))
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    said = capsys.readouterr().err
    assert "none that torch sees" in said and "a GPU of sm86, sm120" in said and "without --target tensorrt" in said


def test_an_engine_without_its_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"model.plan": StoredFile(size_bytes=7, sha256="")}
    write_json(tmp_path / ENGINE_FILE, to_data(replace(engine_of(MODEL, SLOTS), files=files)))
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert "model.plan" in capsys.readouterr().err
