"""Our kernels really compiled, for GPUs that are not here; and the operators' refusals, on the CPU."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is needed (the extra triton)")

from blockwright.cli.main import main
from blockwright.compile import kernels
from blockwright.compile.kernel_build import CAPABILITIES, MOST_SHARED_BYTES, check_capability, compile_kernel
from blockwright.compile.kernel_files import MANIFEST_FILE, catalogue, read_manifest, write_kernels
from blockwright.compile.kernel_ops import int4_linear, sparse_decode, sparse_prefill
from blockwright.compile.kernel_twins import far_tokens, int4_linear_twin, sparse_decode_twin, sparse_prefill_twin
from blockwright.compile.kernels import Heads
from blockwright.compile.ptx import parameter_types, target, version
from blockwright.compile.triton_launch import FUNCTIONS
from blockwright.compile.triton_package import check_version, triton
from blockwright.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:triton")
HEADS = Heads(number="fp16", head_dim=64, heads_per_kv=4)


@pytest.fixture(autouse=True, scope="module")
def _no_cache_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    with triton.knobs.cache.scope():
        triton.knobs.cache.home_dir = str(home)
        yield
    assert not list(home.rglob("*")), "the compiler's cache is its own, and goes again"


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [
        ("sm80", kernels.int4_vector("fp16", 32, is_split=False)),
        ("sm86", kernels.sum_splits("bf16")),
        ("sm87", kernels.int4_tiles("fp16", 128, is_split=True)),
        ("sm89", kernels.join_splits("fp16", 64)),
        ("sm90", kernels.sparse_decode(HEADS, is_split=True)),
        ("sm100", kernels.int4_vector("bf16", 128, is_split=True)),
        ("sm110", kernels.sparse_decode(HEADS, is_split=False)),
        ("sm120", kernels.sparse_prefill(HEADS)),
    ],
)
def test_kernels_compile_for_every_gpu(capability: str, kernel: kernels.Kernel, tmp_path: Path) -> None:
    made = compile_kernel(kernel, capability)
    number = capability[2:]
    assert target(made.ptx) == made.target == f"sm_{number}" + ("a" if int(number) >= 90 else "")
    assert version(made.ptx) <= ((9, 0) if capability == "sm110" else (8, 7))
    kinds = ["u64" if argument.type.startswith("*") else "u32" for argument in kernel.arguments]
    assert parameter_types(made.ptx) == kinds
    assert made.spill_store_bytes == made.spill_load_bytes == made.stack_bytes == 0
    assert 0 < made.num_registers <= 255 and made.shared_bytes <= MOST_SHARED_BYTES[capability]
    assert f".reqntid {32 * kernel.num_warps}" in made.ptx
    (tmp_path / "k.cubin").write_bytes(made.cubin)
    dump = [triton.knobs.nvidia.cuobjdump.path, "-lelf", str(tmp_path / "k.cubin")]
    listed = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"sm_\w+", listed) == [made.target]


def test_all_gpus_are_tested_above() -> None:
    marks: Any = test_kernels_compile_for_every_gpu
    assert tuple(capability for capability, _ in marks.pytestmark[-1].args[1]) == CAPABILITIES


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.int4_vector("fp16", 32, is_split=True),
        kernels.int4_tiles("fp16", 32, is_split=True),
        kernels.sum_splits("fp16"),
        kernels.sparse_decode(HEADS, is_split=True),
        kernels.join_splits("fp16", 64),
        kernels.sparse_prefill(HEADS),
    ],
    ids=lambda kernel: kernel.function,
)
def test_kernels_compile_where_every_number_is_one(kernel: kernels.Kernel, tmp_path: Path) -> None:
    """Triton compiles numbers in that are 1 when torch launches, such as a single KV head; code must allow for it."""
    function = FUNCTIONS[kernel.function]
    numbers = {each.name: 1 for each in kernel.arguments if each.type == "i32"}
    pointers = {f"{each.name}_ptr": each.type for each in kernel.arguments if each.type.startswith("*")}
    constants = dict(kernel.constants) | numbers
    signature = {name: pointers.get(name, "constexpr") for name in function.arg_names}
    source = triton.compiler.ASTSource(function, signature=signature, constexprs=constants)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        made = triton.compile(source, target=target, options={"num_warps": kernel.num_warps, "enable_fp_fusion": True})
    assert made.asm["cubin"]


@pytest.mark.parametrize("make", [lambda heads: kernels.sparse_decode(heads, is_split=True), kernels.sparse_prefill])
def test_wide_heads_fit_where_shared_memory_is_smallest(make: Any) -> None:
    made = compile_kernel(make(Heads(number="fp16", head_dim=256, heads_per_kv=4)), "sm86")
    assert made.spill_store_bytes == 0 and made.shared_bytes <= MOST_SHARED_BYTES["sm86"]


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    kernel = kernels.sparse_prefill(Heads(number="fp16", head_dim=256, heads_per_kv=4))
    larger = dataclasses.replace(kernel, constants=(*kernel.constants[:-2], ("BLOCK_T", 128), ("BLOCK_S", 32)))
    with pytest.raises(InputError, match="shared memory; expected at most 101376 on sm86"):
        compile_kernel(larger, "sm86")


def test_nothing_of_this_machine_is_in_what_is_written() -> None:
    made = compile_kernel(kernels.sum_splits("fp16"), "sm90")
    here = str(Path(__file__).parents[2])
    assert here not in made.ptx and here.encode() not in made.cubin


def test_a_manifest_says_how_to_launch_and_files_are_what_it_says(tmp_path: Path) -> None:
    wanted = (kernels.sum_splits("fp16"), kernels.join_splits("fp16", 64))
    told: list[str] = []
    manifest = write_kernels(wanted, ("sm80", "sm120"), tmp_path / "k", lambda each: told.append(each.name))
    assert read_manifest(tmp_path / "k") == manifest
    assert told == [each.name for each in manifest.kernels] == [kernel.name for kernel in wanted] * 2
    assert set(manifest.ptxas) == {"sm80", "sm120"} and all(re.match(r"\d+\.\d+", v) for v in manifest.ptxas.values())
    for each in manifest.kernels:
        for file in (each.ptx, each.cubin):
            content = (tmp_path / "k" / file.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size_bytes, file.sha256)
        assert f".entry {each.entry}(" in (tmp_path / "k" / each.ptx.path).read_text()
    first = manifest.kernels[0]
    assert [(each.name, each.type) for each in first.arguments] == [
        ("partial", "*fp32"),
        ("num_values", "i32"),
        ("num_splits", "i32"),
        ("out", "*fp16"),
    ]
    assert (first.grid, first.constants, first.block_threads) == (wanted[0].grid, {"BLOCK": 1024.0}, 128)
    write_kernels(wanted[:1], ("sm80",), tmp_path / "k")  # its own folder may be replaced
    assert len(read_manifest(tmp_path / "k").kernels) == 1


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        write_kernels((kernels.sum_splits("fp16"),), ("sm80",), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_catalogue_has_each_kernel_once() -> None:
    found = catalogue(("fp16", "bf16"), ((128, 4), (128, 8), (64, 1)))
    assert len({kernel.name for kernel in found}) == len(found)
    assert {kernel.function for kernel in found} == {
        *("int4_vector", "int4_tiles", "sum_splits", "sparse_decode", "join_splits", "sparse_prefill")
    }


def test_the_catalogue_has_what_products_launch() -> None:
    names = {kernel.name for kernel in catalogue(("fp16",), ())}
    launched = {
        kernels.linear_for("fp16", group, num_rows, is_split).name
        for group in kernels.GROUPS
        for num_rows in range(1, 200)
        for is_split in (False, True)
    }
    assert names == launched | {"sum_splits_fp16"}


def test_the_command_prints_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockwright.compile.kernel_files.catalogue", lambda *_: (kernels.sum_splits("bf16"),))
    out = str(tmp_path / "k")
    assert main(["kernels", "--for", "sm89", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "k" / MANIFEST_FILE).read_text())
    assert main(["kernels", "--for", "sm89,sm89", "--out", out]) == 0
    assert "sm89" in (table := capsys.readouterr().out) and "1 kernels by Triton" in table


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--for", "sm75"), "--for"),
        (("--for", "hopper"), "--for"),
        (("--dtype", "fp32"), "--dtype"),
        (("--heads", "128"), "--heads"),
        (("--heads", "4x1"), "head_dim"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    flags: tuple[str, str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "--out", str(tmp_path / "k"), *flags]) == 2
    assert f"error in {field}\n" in capsys.readouterr().err
    assert not (tmp_path / "k").exists()


def test_the_absence_of_triton_is_told_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from blockwright.cli.main import main\n"
        "sys.exit(main(['kernels', '--for', 'sm90']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'blockwright[triton]'" in done.stderr


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_version("3.6.0")
    with pytest.raises(InputError, match=r"Triton 3\.5\.1; expected Triton 3\.6 or later"):
        check_version("3.5.1")
    check_capability("sm110")
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    check_capability("sm90")
    with pytest.raises(InputError, match=r"Triton 3\.6\.0 for sm110; expected Triton 3\.9 or later"):
        check_capability("sm110")


def _linear(**changes: Any) -> dict[str, Any]:
    given = {"x": torch.zeros(2, 64), "codes_NK": torch.zeros(6, 32, dtype=torch.uint8), "scales_NG": torch.ones(6, 2)}
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    return halved | changes


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"x": torch.zeros(2, 64)}, "x"),
        ({"scales_NG": torch.ones(6, 2)}, "scales"),
        ({"scales_NG": torch.ones(6, 4).half()}, "scales"),
        ({"codes_NK": torch.zeros(6, 64, dtype=torch.uint8)}, "codes"),
        ({"codes_NK": torch.zeros(6, 32)}, "codes"),
    ],
)
def test_operands_of_products_that_do_not_fit_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        int4_linear(**_linear(**changes))
    assert refused.value.field == field


def _decode(**changes: Any) -> dict[str, Any]:
    k = torch.ones(2, 2, 5, 16).half()
    counts_B = torch.tensor([5, 2], dtype=torch.int32)
    return {"q_BHD": torch.ones(2, 4, 16).half(), "k_BJSD": k, "v_BJSD": k, "counts_B": counts_B} | changes


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"q_BHD": torch.ones(2, 4, 16)}, "q"),
        ({"q_BHD": torch.ones(2, 3, 16).half()}, "k, v"),
        ({"v_BJSD": torch.ones(2, 2, 6, 16).half()}, "k, v"),
        ({"v_BJSD": torch.ones(2, 2, 5, 16)}, "k, v"),
        ({"counts_B": torch.tensor([5, 2])}, "counts"),
        ({"counts_B": torch.tensor([5], dtype=torch.int32)}, "counts"),
        ({"num_splits": 65}, "num_splits"),
        ({"scale": float("nan")}, "scale"),
    ],
)
def test_operands_of_attention_that_do_not_fit_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        sparse_decode(**_decode(**changes))
    assert refused.value.field == field


def test_a_prompts_operands_that_do_not_fit_are_refused() -> None:
    given = _decode()
    q, k, v = given["q_BHD"][:, :, None], given["k_BJSD"], given["v_BJSD"]
    far, before = far_tokens(torch.ones(2, 5, dtype=torch.bool))
    starts_B = torch.zeros(2, dtype=torch.int32)
    for operands, field in (
        ((far, before, starts_B, 0), "num_neighbours"),
        ((far, before[:, 1:], starts_B, 2), "far_before"),
        ((far.long(), before, starts_B, 2), "far"),
        ((far, before, starts_B[:1], 2), "starts"),
    ):
        with pytest.raises(InputError) as refused:
            sparse_prefill(q, k, v, *operands)
        assert refused.value.field == field


def test_without_a_gpu_the_twins_compute() -> None:
    linear, decode = _linear(x=torch.ones(2, 64).half()), _decode()
    assert torch.equal(int4_linear(**linear), int4_linear_twin(*linear.values()))
    assert torch.equal(sparse_decode(**decode), sparse_decode_twin(*decode.values(), scale=0.25))
    far, starts_B = far_tokens(torch.ones(2, 5, dtype=torch.bool)), torch.zeros(2, dtype=torch.int32)
    whole = (decode["q_BHD"][:, :, None], decode["k_BJSD"], decode["v_BJSD"])
    found = sparse_prefill(*whole, *far, starts_B, 2)
    assert torch.equal(found, sparse_prefill_twin(*whole, far, starts_B, 2, 0.25))
