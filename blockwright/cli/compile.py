"""Compile a checkpoint, a child's or a parent's: into an engine, or into what another engine loads.

Writes a folder. For onnxruntime: the graph, its weights, the tokenizer and engine.json. For vllm, sglang, tensorrt-llm
and transformers: a checkpoint, integers in it as compressed-tensors. For llama.cpp: model.gguf, with integers as Q8_0
and Q4_0. For onnxruntime-genai: a graph, its weights, genai_config.json and the tokenizer. For tensorrt: a plan built
by the installed TensorRT or TensorRT-RTX, with the graph it was built from. What the target cannot load is refused
before anything is written, layer by layer.

With --kit, a zip that builds the plan on the device. blockwright generate opens what comes out where there is Python
3.11; JetPack 6 has 3.10, and there the plan runs from a program of one's own (inputs and outputs: compile/decoder.py
and compile/decomposed.py of the repository).

  blockwright compile child --format int4 --out engine
  blockwright compile child --plan plan.json --out engine      # each layer in the format that the plan gives it
  blockwright compile child --target llama.cpp --format int4 --out gguf
  blockwright compile child --target vllm --format int4-g128 --out vllm
  blockwright compile child --target onnxruntime-genai --format int4 --context 4096 --out genai
  blockwright compile child --target tensorrt --format int4 --for sm86,sm89,sm120 --out tensorrt
  blockwright compile child --target tensorrt --format int4-g64 --kit --out kit.zip     # to build on the device itself
  blockwright compile child --target tensorrt --format int4-g64 --kit --profile jetson_agx_orin --form decomposed
  blockwright compile child --target tensorrt --format int4-g64 --kit --form decomposed --out orin.zip  # JetPack 6
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blockwright.errors import InputError

if TYPE_CHECKING:
    from blockwright.search.plan import Plan

FLAVOURS = ("standard", "contrib")
FORMS = ("fused", "decomposed")
TARGETS = (
    "onnxruntime",
    "vllm",
    "sglang",
    "tensorrt-llm",
    "transformers",
    "llama.cpp",
    "onnxruntime-genai",
    "tensorrt",
)


_OF_TENSORRT = ("capabilities", "profile", "batch", "kit", "form")
"""Arguments that no other target knows."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a repository of the Hugging Face hub")
    parser.add_argument("--target", default="onnxruntime", choices=TARGETS, help="who runs it (default: onnxruntime)")
    parser.add_argument(
        "--format",
        help="of all layers: fp32, fp16, bf16, int8-g32, int4-g32, int4-g64, int4-g128, of which each target takes "
        "some (default: fp32, of tensorrt fp16)",
    )
    parser.add_argument(
        "--head",
        metavar="FORMAT",
        help="of the head alone, such as int4-g32: of onnxruntime (default: --format, and int8-g32 beside int4) and of "
        "tensorrt, which keeps int4 (default: fp16, or bf16 beside bf16)",
    )
    parser.add_argument(
        "--embedding",
        metavar="FORMAT",
        help="the same of the embedding, such as int8-g32; tensorrt keeps int8 and int4",
    )
    parser.add_argument("--plan", type=Path, help="store each layer as this plan of the checkpoint says")
    parser.add_argument("--threads", type=int, help="threads of onnxruntime (default: 1)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="longest sequence (default: the checkpoint's)")
    parser.add_argument("--for", dest="capabilities", metavar="SM", help="GPUs of a tensorrt engine, as sm86,sm120")
    parser.add_argument("--profile", metavar="DEVICE", help="the GPU of a tensorrt engine, by its profile, for --for")
    parser.add_argument(
        "--kit",
        action="store_true",
        default=None,
        help="pack what a tensorrt engine is built from, to be built on the device; no TensorRT is needed here",
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        help="of a tensorrt engine: fused, of layers that TensorRT has since 10.15 (default), or decomposed into "
        "products and a softmax, for TensorRT 10.3 to 10.14, as on a Jetson Orin with JetPack 6",
    )
    parser.add_argument(
        "--batch",
        type=int,
        help="sequences side by side in a tensorrt engine: the most, and what it is fastest for (default: 1)",
    )
    parser.add_argument(
        "--flavour",
        choices=FLAVOURS,
        help="operators of onnxruntime's graph: ONNX's own, or the faster ones of onnxruntime (default: standard, "
        "which profiles are measured in)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        default=None,
        help="choose onnxruntime's settings by timing the engine here: up to --threads, spinning, accuracy, denormals",
    )
    parser.add_argument(
        "-o", "--out", type=Path, help="the folder to write (default: engine), or the kit (default: kit.zip)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.search.plan import read_plan

    if arguments.out is None:
        arguments.out = Path("kit.zip" if arguments.kit else "engine")
    plan = None if arguments.plan is None else read_plan(arguments.plan)
    if plan is not None and arguments.format is not None:
        raise InputError(
            "--format, --plan",
            got="both",
            expected="one of them, for a plan says the format of each layer",
            remedy="Leave one out.",
        )
    default = "fp16" if arguments.target == "tensorrt" else "fp32"
    weights = None if plan is not None else default if arguments.format is None else arguments.format
    if arguments.target == "onnxruntime":
        _refuse_given(arguments, *_OF_TENSORRT)
        _build(arguments, weights, plan)
    elif arguments.target == "tensorrt":
        _refuse_given(arguments, "threads", "flavour", "tune")
        _build_for_tensorrt(arguments, weights, plan)
    else:
        _export(arguments, weights, plan)


def _build(arguments: argparse.Namespace, weights: str | None, plan: "Plan | None") -> None:
    from blockwright.pipeline.compile import CompileOrder, compile_checkpoint
    from blockwright.pipeline.recipe import check_at_least, check_formats
    from blockwright.pipeline.tune import print_tuning
    from blockwright.servable import STORABLE

    if weights is not None:
        check_formats("--format", [weights], STORABLE)
    for name in ("head", "embedding"):
        if (text := getattr(arguments, name)) is not None:
            check_formats(f"--{name}", [text], STORABLE)
    threads = 1 if arguments.threads is None else arguments.threads
    check_at_least("--threads", threads, 1)
    if arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    order = CompileOrder(
        format=weights,
        threads=threads,
        head=arguments.head,
        embedding=arguments.embedding,
        num_positions=arguments.context,
        flavour=arguments.flavour,
        tunes=bool(arguments.tune),
    )
    engine = compile_checkpoint(arguments.checkpoint, order, arguments.out, plan=plan)
    beside = _beside(arguments)
    print(f"{arguments.out}: {engine.format}{beside}, {engine.flavour}, {engine.graph_bytes / 1e6:.2f} MB")
    if engine.tuning is not None:
        print_tuning(engine.tuning)
    print(f"next, blockwright generate {arguments.out} --prompt …")


def _build_for_tensorrt(arguments: argparse.Namespace, weights: str | None, plan: "Plan | None") -> None:
    from blockwright.pipeline.compile_tensorrt import (
        TensorRtCompileOrder,
        beyond_promises,
        compile_for_tensorrt,
        pack_tensorrt_kit,
    )
    from blockwright.pipeline.recipe import check_at_least

    if arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    most_sequences = 1 if arguments.batch is None else arguments.batch
    check_at_least("--batch", most_sequences, 1)
    order = TensorRtCompileOrder(
        format=weights,
        capabilities=_capabilities(arguments),
        num_positions=arguments.context,
        most_sequences=most_sequences,
        head=arguments.head,
        embedding=arguments.embedding,
        form="fused" if arguments.form is None else arguments.form,
    )
    if arguments.kit:
        size = pack_tensorrt_kit(arguments.checkpoint, order, arguments.out, plan=plan)
        version = "10.15" if order.form == "fused" else "10.3"
        print(f"{arguments.out}: {size / 1e6:.2f} MB. On the device, with Python 3.10 and TensorRT {version} or later:")
        print(f"  python3 -m zipfile -e {arguments.out.name} kit && python3 kit/build.py --out engine")
        print("or, with trtexec alone, unpacked in the same way: sh kit/build.sh")
        if order.form == "decomposed":
            print("blockwright generate needs Python 3.11: with JetPack 6 the plan runs from a program of your own")
        return
    engine, is_new = compile_for_tensorrt(arguments.checkpoint, order, arguments.out, plan=plan)
    size_mb = engine.files["model.plan"].size_bytes / 1e6
    gpus = ", ".join(engine.compute_capabilities)
    print(f"{arguments.out}: {engine.format}{_beside(arguments)} for {gpus}, {size_mb:.2f} MB")
    assert engine.build_s is not None, "built here"
    how = f"built by {engine.package} {engine.package_version} in {engine.build_s:.1f} s"
    print(f"{how if is_new else f'unchanged, {how} before'}; opens in this version only")
    for line in beyond_promises(plan, engine) if plan is not None else ():
        print(f"note: {line}")
    print(f"next, on such a GPU, blockwright generate {arguments.out} --prompt …")


def _beside(arguments: argparse.Namespace) -> str:
    """What is stored otherwise than the layers, as it was asked for."""
    asked = (("head", arguments.head), ("embedding", arguments.embedding))
    return "".join(f", {name} in {text}" for name, text in asked if text is not None)


def _capabilities(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    from blockwright.pipeline.compile_tensorrt import capabilities_of

    asked = arguments.capabilities
    if arguments.profile is None:
        return None if asked is None else tuple(name.strip().lower() for name in asked.split(","))
    if asked is not None:
        raise InputError(
            "--for, --profile", got="both", expected="one of them: each names GPUs", remedy="Leave one out."
        )
    return capabilities_of(arguments.profile, bool(arguments.kit))


def _refuse_given(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if (given := getattr(arguments, name)) is not None:
            raise InputError(
                "--for" if name == "capabilities" else f"--{name}",
                got=f"{'it' if given is True else given} for {arguments.target}",
                expected="no such setting in what it loads",
                remedy="Leave it out, or add --target tensorrt."
                if name in _OF_TENSORRT
                else f"Leave it out, and tell {arguments.target} itself.",
            )


def _export(arguments: argparse.Namespace, weights: str | None, plan: "Plan | None") -> None:
    from blockwright.pipeline.compile import export_checkpoint
    from blockwright.pipeline.recipe import check_at_least

    _refuse_given(arguments, "threads", "flavour", "tune", "head", "embedding", *_OF_TENSORRT)
    if arguments.target != "onnxruntime-genai":
        _refuse_given(arguments, "context")
    elif arguments.context is not None:
        check_at_least("--context", arguments.context, 1)
    export = export_checkpoint(
        arguments.checkpoint, arguments.target, weights, arguments.out, plan=plan, num_positions=arguments.context
    )
    print(f"{arguments.out}: {export.format} for {export.target}, {sum(export.files.values()) / 1e6:.2f} MB")
    if export.scale_error:
        print(f"scales in fp16 change no matrix by more than {export.scale_error:.2%} of its root mean square")
    if export.remark is not None:
        print(f"{export.target}: {export.remark}")
