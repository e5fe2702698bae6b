"""Which TensorRT builds for which GPU, and in which formats: decided without any TensorRT, by made-up ones."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from blockwright.compile.tensorrt_checks import KERNEL_BYTES, check_plan_size, expected_of, int4_bytes
from blockwright.compile.tensorrt_engine import takes_one_token, token_ranges
from blockwright.compile.tensorrt_package import Package, PackageName, find_package
from blockwright.compile.tensorrt_stored import BF16, stored_for_tensorrt
from blockwright.compile.tensorrt_target import (
    _OF_RTX_1_7_1,
    check_kit_capabilities,
    choose_capabilities,
    choose_package,
)
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.spec import (
    FP16,
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearMixer,
    NoOp,
    parse_format,
    stored_as,
    with_format,
)

MODEL = llama(
    (
        Block(mixer=Attention(num_kv_heads=2), ffn=GatedFFN(width=352)),
        Block(mixer=LinearMixer(), ffn=NoOp()),
    ),
    vocab_size=80,
    hidden_size=256,
    num_heads=4,
    head_dim=64,
    max_positions=64,
)
INT4 = Format(name="int4", group_size=32)


class _Missing:
    """Makes an import fail as Python does."""

    def __init__(self, **errors: ImportError) -> None:
        self._errors = errors

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in self._errors:
            raise self._errors[name]


def _install(monkeypatch: pytest.MonkeyPatch, **versions: str | ImportError | None) -> None:
    """Puts made-up packages in place of both; None for a missing one."""
    errors: dict[str, ImportError] = {}
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        version = versions.get(name)
        if isinstance(version, str):
            module = ModuleType(name)
            module.__dict__["__version__"] = version
            monkeypatch.setitem(sys.modules, name, module)
        else:
            errors[name] = version or ModuleNotFoundError(f"No module named {name!r}", name=name)
    monkeypatch.setattr(sys, "meta_path", [_Missing(**errors), *sys.meta_path])


@pytest.mark.parametrize(
    ("gpu", "versions", "chosen"),
    [
        ("sm89", {"tensorrt": "10.15.1.29", "tensorrt_rtx": "1.7.1"}, "TensorRT 10.15.1.29"),
        (None, {"tensorrt": "10.15.1.29", "tensorrt_rtx": "1.7.1"}, "TensorRT-RTX 1.7.1"),
        ("sm89", {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}, "TensorRT-RTX 1.7.1"),
        (None, {"tensorrt": "11.0.0"}, "TensorRT 11.0.0"),
    ],
)
def test_the_one_that_can_build_here_is_chosen(
    gpu: str | None, versions: dict[str, str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, **versions)
    assert choose_package(gpu).title == chosen


@pytest.mark.parametrize(
    ("versions", "complaint"),
    [
        ({}, r"no TensorRT-RTX; no TensorRT;.*TensorRT-RTX 1\.7 or later.*blockwright\[tensorrt-rtx\]"),
        ({"tensorrt": "10.3.0"}, r"TensorRT 10\.3\.0, too old \(Attention.*10\.14.*10\.15\)"),
        ({"tensorrt_rtx": "1.2.0"}, r"TensorRT-RTX 1\.2\.0, too old"),
        ({"tensorrt": ImportError("libnvonnxparser.so.11: no such file")}, r"does not load \(libnvonnxparser"),
    ],
)
def test_without_one_that_is_new_enough_the_error_says_what_is_needed(
    versions: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, **versions)
    with pytest.raises(InputError, match=complaint):
        choose_package(None)


@pytest.mark.parametrize("version", ["10.3.0", "10.14.1"])
def test_between_both_forms_versions_the_decomposed_one_builds_and_the_other_says_so(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, tensorrt=version)
    assert choose_package("sm87", "decomposed").title == f"TensorRT {version}"
    assert find_package(("tensorrt",)).version == version, "which opens what it built"
    with pytest.raises(InputError, match=r"expected TensorRT 10\.15 or later.*--form decomposed"):
        choose_package("sm87")


def test_what_is_too_old_for_both_forms_is_not_sent_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tensorrt="10.2.0")
    with pytest.raises(InputError, match=r"too old \(int4 comes with 10\.0.*JetPack 6.*TensorRT 10\.3 or later"):
        choose_package("sm87", "decomposed")
    with pytest.raises(InputError) as refused:
        choose_package("sm87", "fused")
    assert "--form" not in str(refused.value)


def test_a_plan_asks_for_the_package_that_built_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tensorrt="11.0.0")
    with pytest.raises(InputError, match="no TensorRT-RTX"):
        find_package(("tensorrt_rtx",))


def _package(name: PackageName) -> Package:
    members = dict.fromkeys(["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
    return Package(
        name=name, version="9.9", trt=SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members))
    )


@pytest.mark.parametrize(
    ("name", "asked", "gpu", "chosen"),
    [
        ("tensorrt_rtx", None, None, ("sm80", "sm86", "sm89", "sm120")),
        ("tensorrt_rtx", ("sm121", "sm86", "sm121"), None, ("sm121", "sm86")),
        ("tensorrt_rtx", ("sm75",), "sm90", ("sm75",)),
        ("tensorrt", None, "sm87", ("sm87",)),
        ("tensorrt", ("sm87",), "sm87", ("sm87",)),
    ],
)
def test_gpus_are_those_asked_for_or_what_suits(
    name: PackageName, asked: tuple[str, ...] | None, gpu: str | None, chosen: tuple[str, ...]
) -> None:
    assert choose_capabilities(_package(name), asked, gpu, ()) == chosen


@pytest.mark.parametrize(
    ("name", "asked", "gpu", "complaint"),
    [
        (
            "tensorrt_rtx",
            ("sm87",),
            None,
            "got sm87; .*sm75, sm80.* Jetson Orin .*JetPack 7.2.*--kit --form decomposed.*JetPack 6",
        ),
        ("tensorrt_rtx", ("sm86", "sm90"), None, "got sm90; .*on that GPU"),
        ("tensorrt_rtx", ("sm75",), None, "sm75 with int4 and bf16.*sm80 or later.*fp16"),
        ("tensorrt_rtx", ("8.6",), None, "got '8.6'; .*sm86,sm120"),
        ("tensorrt_rtx", ("",), None, "got ''"),
        ("tensorrt", None, None, "no GPU; .*builds for no other.*tensorrt-rtx"),
        ("tensorrt", ("sm86",), "sm90", "sm86 with an sm90 here"),
    ],
)
def test_gpus_that_cannot_be_built_for_are_refused(
    name: PackageName, asked: tuple[str, ...] | None, gpu: str | None, complaint: str
) -> None:
    with pytest.raises(InputError, match=f"--for: .*{complaint}"):
        choose_capabilities(_package(name), asked, gpu, ("int4", "bf16"))


@pytest.mark.parametrize(
    ("installed", "taken", "refused", "complaint"),
    [
        (None, "sm75", "sm999", r"sm75, sm80, sm86, sm89, sm120, sm121, which TensorRT-RTX 1\.7\.1 builds for"),
        (None, "sm121", "sm87", r"Jetson Orin .*--kit --form decomposed packs without --for"),
        (("SM86", "SM130"), "sm130", "sm120", r"some of sm86, sm130, which TensorRT-RTX 9\.9 builds for"),
    ],
)
def test_a_kit_is_for_what_the_installed_tensorrt_rtx_knows_or_the_one_that_was_tried(
    installed: tuple[str, ...] | None, taken: str, refused: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed is None:
        _install(monkeypatch)
    else:
        _install(monkeypatch, tensorrt_rtx="9.9")
        members = dict.fromkeys(["NONE", *installed])
        sys.modules["tensorrt_rtx"].__dict__["ComputeCapability"] = SimpleNamespace(__members__=members)
    check_kit_capabilities((taken,), ())
    with pytest.raises(InputError, match=f"--for: got {refused}; .*{complaint}"):
        check_kit_capabilities((taken, refused), ())


def test_what_was_tried_is_what_tensorrt_rtx_lists() -> None:
    package = pytest.importorskip("tensorrt_rtx")
    if not package.__version__.startswith("1.7.1."):
        pytest.skip(f"TensorRT-RTX 1.7.1 is needed, this is {package.__version__}")
    check_kit_capabilities(_OF_RTX_1_7_1, ())
    with pytest.raises(InputError, match=f"some of {', '.join(_OF_RTX_1_7_1)}, which"):
        check_kit_capabilities(("sm999",), ())


@pytest.mark.parametrize(
    ("text", "embedding", "activations", "narrow"),
    [
        ("fp16", FP16, "float16", ()),
        ("bf16", BF16, "bfloat16", ("bf16",)),
        ("int4-g32", FP16, "float16", ("int4",)),
    ],
)
def test_embedding_and_head_are_in_what_the_network_computes_in(
    text: str, embedding: Format, activations: str, narrow: tuple[str, ...]
) -> None:
    stored = stored_for_tensorrt(MODEL, parse_format(text))
    assert stored.model == replace(with_format(MODEL, parse_format(text)), embedding_weights=embedding)
    assert (stored.activations, stored.narrow) == (activations, narrow)


@pytest.mark.parametrize(("beside", "activations"), [(FP16, "float16"), (BF16, "bfloat16")])
def test_a_plan_may_mix_integers_with_one_of_the_halves(beside: Format, activations: str) -> None:
    first, second = MODEL.layers
    layers = (Block(mixer=stored_as(first.mixer, INT4), ffn=stored_as(first.ffn, beside)), second)
    mixed = replace(MODEL, layers=(layers[0], replace(second, mixer=stored_as(second.mixer, beside))))
    stored = stored_for_tensorrt(mixed, None)
    assert (stored.activations, stored.model.layers) == (activations, mixed.layers)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fp32", "got fp32 in all layers, where TensorRT's attention computes in fp16 or bf16 only;"),
        ("int8-g32", "layer 0: a mixer in int8-g32, which TensorRT multiplies out"),
        ("int4-g256", "layer 0: a mixer in int4-g256, which TensorRT does not always keep"),
        ("int4-g64", "got layer 0: an ffn in int4-g64 with 352 inputs, which is no whole number of groups;"),
    ],
)
def test_formats_that_tensorrt_does_not_keep_are_refused_by_layer(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        stored_for_tensorrt(MODEL, parse_format(text))


def test_plans_with_both_halves_or_fp32_layers_are_refused() -> None:
    first, second = MODEL.layers
    both = replace(MODEL, layers=(Block(mixer=stored_as(first.mixer, FP16), ffn=stored_as(first.ffn, BF16)),))
    with pytest.raises(InputError, match="plan: child: got fp16 and bf16 in one network"):
        stored_for_tensorrt(both, None)
    half = Block(mixer=stored_as(first.mixer, FP16), ffn=stored_as(first.ffn, FP16))
    with pytest.raises(InputError, match="plan: child: got fp32 in layer 0, where"):
        stored_for_tensorrt(replace(MODEL, layers=(replace(half, ffn=first.ffn), half)), None)
    with pytest.raises(InputError, match="plan: child: got fp32 in layers 0, 2, where"):
        stored_for_tensorrt(replace(MODEL, layers=(replace(half, ffn=first.ffn), half, second)), None)
    assert first.mixer == Attention(num_kv_heads=2, weights=FP32)


def test_both_profiles_allow_the_same_tokens_and_favour_their_own() -> None:
    assert [(r.name, r.fewest, r.typical, r.most) for r in token_ranges(4096)] == [
        ("prefill", 1, 512, 512),
        ("decode", 1, 1, 512),
    ]
    assert {each.most for each in token_ranges(64)} == {64}, "no more than there are slots"


def test_a_profile_of_one_token_is_asked_for_where_it_copies_no_weights() -> None:
    assert [(r.fewest, r.typical, r.most) for r in token_ranges(4096, decode_takes_one=True)] == [
        (1, 512, 512),
        (1, 1, 1),
    ]
    int4, half = (stored_for_tensorrt(MODEL, parse_format(text)) for text in ("int4-g32", "fp16"))
    mixed = replace(int4, model=replace(int4.model, layers=(int4.model.layers[0], half.model.layers[1])))
    assert [takes_one_token("tensorrt_rtx", each, 1) for each in (int4, half, mixed)] == [True, False, False]
    assert takes_one_token("tensorrt_rtx", half, 2)
    assert not any(takes_one_token("tensorrt", int4, most) for most in (1, 2)), "nobody tried"


def test_a_plan_in_which_integers_were_multiplied_out_is_refused() -> None:
    check_plan_size(5_000_000 + 2 * KERNEL_BYTES, 5_000_000, 4_000_000, 2)
    check_plan_size(180_000_000, 100_000_000, 80_000_000, 2)
    check_plan_size(400_000_000, 100_000_000, 0, 2)
    with pytest.raises(InputError, match=r"got 340\.0 MB; expected at most 220\.0 MB"):
        check_plan_size(340_000_000, 100_000_000, 80_000_000, 2)


def test_codes_are_counted_in_int4_parts_alone() -> None:
    first, second = MODEL.layers
    mixed = replace(MODEL, layers=(Block(mixer=stored_as(first.mixer, INT4), ffn=first.ffn), second))
    projections = 256 * 256 + 2 * 256 * 128 + 256 * 256
    assert int4_bytes(mixed) == projections // 2
    assert expected_of(mixed).num_integer_matrices == 4
    assert expected_of(with_format(MODEL, INT4)).num_integer_matrices == 4 + 3 + 1
    assert expected_of(with_format(MODEL, INT4), "decomposed").num_integer_matrices == 4 + 3 + 1
