"""TensorRT's run-time session, with ONNX Runtime in TensorRT's place: the same graph on the same torch tensors."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blockwright.cli.main import main
from blockwright.compile.decoder import decoder_graph
from blockwright.compile.engine import ENGINE_FILE, SessionSettings, StoredFile
from blockwright.compile.flavour import Flavour
from blockwright.compile.generate import generate_ids
from blockwright.compile.sampling import Sampling
from blockwright.compile.session import make_session
from blockwright.compile.slots import PREFILL_CHUNK
from blockwright.compile.tensorrt_engine import TensorRtEngine, token_ranges
from blockwright.compile.tensorrt_package import Package
from blockwright.compile.tensorrt_session import TensorRtDecoder, check_gpu, check_version
from blockwright.errors import InputError
from blockwright.files import write_json
from blockwright.llama import llama
from blockwright.model.child import build_child, load_weights
from blockwright.profiler.synthetic import random_weights
from blockwright.profiler.torch_blocks import hf_config
from blockwright.spec import FP32, Attention, Block, GatedFFN, LinearFFN, LinearMixer, Model, NoOp, Window
from blockwright.strict import to_data

SLOTS = PREFILL_CHUNK + 64
HETEROGENEOUS = (
    Block(mixer=NoOp(), ffn=GatedFFN(width=96)),
    Block(mixer=Attention(num_kv_heads=4), ffn=GatedFFN(width=160)),
    Block(mixer=LinearMixer(), ffn=LinearFFN()),
    Block(mixer=Attention(num_kv_heads=1, reach=Window(num_tokens=6)), ffn=NoOp()),
)
MODEL = llama(HETEROGENEOUS, hidden_size=64, num_heads=4, head_dim=16, vocab_size=80, max_positions=SLOTS)
MODELS = {"heterogeneous": MODEL, "no attention": replace(MODEL, layers=(HETEROGENEOUS[0], HETEROGENEOUS[2]))}


def _engine(model: Model) -> TensorRtEngine:
    return TensorRtEngine(
        schema_version=1,
        target="tensorrt",
        package="tensorrt_rtx",
        package_version="1.7.1",
        compute_capabilities=("sm86", "sm120"),
        format="fp32",
        activations="float32",
        model=model,
        num_positions=SLOTS,
        slots=SLOTS,
        most_sequences=3,
        profiles=token_ranges(SLOTS),
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


class _InOnnxRuntime:
    """Does on the CPU what the plan does on a GPU, and keeps which profile was asked for how many tokens."""

    def __init__(self, graph: bytes) -> None:
        self._session = make_session(graph, SessionSettings(num_threads=1, accuracy_level=0))
        self.inputs = frozenset(each.name for each in self._session.get_inputs())
        self.device = torch.device("cpu")
        self.runs: list[tuple[int, int]] = []

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None:
        assert self.inputs <= set(tensors)
        caches = [name for name in tensors if name.startswith("past_")]
        names = [*(name.replace("past_", "present_") for name in caches), "logits"]
        found = self._session.run(names, {name: tensors[name].numpy() for name in self.inputs})
        for name, array in zip([*caches, "logits"], found, strict=True):
            tensors[name].copy_(torch.from_numpy(np.asarray(array)))
        self.runs.append((profile, tensors["ids"].shape[1]))


Opened = Callable[[str], tuple[TensorRtDecoder, _InOnnxRuntime, PreTrainedModel]]


@pytest.fixture(scope="module")
def opened() -> Opened:
    def make(name: str) -> tuple[TensorRtDecoder, _InOnnxRuntime, PreTrainedModel]:
        model = MODELS[name]
        weights = {n: 8 * array if array.ndim == 2 else array for n, array in random_weights(model, seed=1).items()}
        graph = decoder_graph(
            replace(model, embedding_weights=FP32), weights, SLOTS, Flavour(name="standard", slots=SLOTS)
        )
        executor = _InOnnxRuntime(graph.SerializeToString())
        child = build_child(model, hf_config(model))
        loaded = load_weights(child, {n: torch.from_numpy(array) for n, array in weights.items()})
        return TensorRtDecoder(_engine(model), executor), executor, loaded

    return make


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[13, 1, 8], [PREFILL_CHUNK + 5, 3]])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_torch_at_every_step(name: str, lengths: list[int], opened: Opened) -> None:
    decoder, executor, child = opened(name)
    num_steps = 9
    texts = [np.random.default_rng(n).integers(0, 80, length + num_steps) for n, length in enumerate(lengths)]
    expected = [child(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy() for ids in texts]
    sequences = decoder.start(len(texts), max(lengths) + num_steps)
    found_BV = sequences.prefill([ids[:length].tolist() for ids, length in zip(texts, lengths, strict=True)])
    for step in range(num_steps + 1):
        places = [length + step for length in lengths]
        wanted_BV = np.stack([logits_TV[place - 1] for logits_TV, place in zip(expected, places, strict=True)])
        np.testing.assert_allclose(found_BV, wanted_BV, atol=2e-4)
        if step < num_steps:
            found_BV = sequences.step(np.array([ids[place] for ids, place in zip(texts, places, strict=True)]))
    chunks = [PREFILL_CHUNK, 5] if max(lengths) > PREFILL_CHUNK else [13]
    assert executor.runs == [(0, size) for size in chunks] + [(1, 1)] * num_steps


def test_text_is_generated_as_by_any_engine(opened: Opened) -> None:
    decoder, _, child = opened("heterogeneous")
    prompt = [3, 1, 4, 1, 5]
    found = [int(ids_B[0]) for ids_B in generate_ids(decoder, [prompt], 6, Sampling(temperature=0.0))]
    for _ in range(6):
        prompt.append(int(child(torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax()))
    assert found == prompt[5:]


def test_more_sequences_than_the_engine_was_built_for_are_refused(opened: Opened) -> None:
    with pytest.raises(InputError, match=r"sequences: got 4; expected at most 3\. .*with a larger --batch"):
        opened("no attention")[0].start(4, 8)


def test_an_engine_opens_on_the_gpus_it_was_built_for_alone() -> None:
    check_gpu(_engine(MODEL), "sm120")
    with pytest.raises(InputError, match="GPU: got none that torch sees; expected a GPU of sm86, sm120"):
        check_gpu(_engine(MODEL), None)
    with pytest.raises(InputError, match=r"got an sm90; expected a GPU of sm86, sm120.*--for sm90"):
        check_gpu(_engine(MODEL), "sm90")


def test_a_plan_of_another_version_is_refused() -> None:
    package = Package(name="tensorrt_rtx", version="1.7.1", trt=None)
    check_version(_engine(MODEL), package)
    with pytest.raises(InputError, match=r"a plan of version 1\.7\.1; expected one of TensorRT-RTX 1\.8\.0"):
        check_version(_engine(MODEL), replace(package, version="1.8.0"))


def test_a_longer_context_is_offered_where_the_model_has_one() -> None:
    for max_positions, is_offered in ((SLOTS, False), (2 * SLOTS, True)):
        engine = replace(_engine(replace(MODEL, max_positions=max_positions)), num_positions=SLOTS)
        with pytest.raises(InputError) as found:
            TensorRtDecoder(engine, _Nothing()).start(1, SLOTS + 1)
        assert ("--context" in found.value.remedy) == is_offered


class _Nothing:
    inputs: frozenset[str] = frozenset()
    device = torch.device("cpu")

    def run(self, profile: int, tensors: Mapping[str, torch.Tensor]) -> None: ...


@pytest.mark.parametrize(("version", "said"), [("1.8.0", "a plan of version"), ("1.7.1", "none that torch sees")])
def test_another_version_is_told_before_a_gpu_is_missed(
    version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / ENGINE_FILE, to_data(_engine(MODEL)))
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

    write_json(tmp_path / ENGINE_FILE, to_data(_engine(MODEL)))
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
    write_json(tmp_path / ENGINE_FILE, to_data(_engine(MODEL)))
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    said = capsys.readouterr().err
    assert "none that torch sees" in said and "a GPU of sm86, sm120" in said and "without --target tensorrt" in said


def test_an_engine_without_its_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"model.plan": StoredFile(size_bytes=7, sha256="")}
    write_json(tmp_path / ENGINE_FILE, to_data(replace(_engine(MODEL), files=files)))
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert "model.plan" in capsys.readouterr().err
