"""Whole models as others measured them: rows of ML.ENERGY, llama.cpp, MLPerf, HAT and single published figures.

ML.ENERGY's B200 rows are of hosts that the GPU waits for: at batch 8 a step of Qwen3-8B takes 5 ms in chat and 32 ms in
gpqa, with the same context at the start and the GPU at 294 W of 1000. No datasheet tells that; they are kept and told
apart. Lengths of its prompts are not published.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from blockwright.hw_profiles.ceilings import Ceilings, Figure
from blockwright.hw_profiles.datasheet_figures import datasheet_ceilings
from blockwright.spec import Attention, Block, GatedFFN, Model, Rope

# vocabulary, hidden, heads, head_dim, KV heads, ffn, layers: config.json of each model on the Hugging Face hub.
# GPT-J's ffn has two matrices of 16384; 10923 gated channels are as many weights.
_SHAPES = {
    "llama-2-70b": (32000, 8192, 64, 128, 8, 28672, 80),
    "llama-3-8b": (128256, 4096, 32, 128, 8, 14336, 32),
    "llama-3-70b": (128256, 8192, 64, 128, 8, 28672, 80),
    "llama-3.1-405b": (128256, 16384, 128, 128, 8, 53248, 126),
    "llama-3.2-3b": (128256, 3072, 24, 128, 8, 8192, 28),
    "qwen3-8b": (151936, 4096, 32, 128, 8, 12288, 36),
    "qwen3-14b": (151936, 5120, 40, 128, 8, 17408, 40),
    "qwen3-32b": (151936, 5120, 64, 128, 8, 25600, 64),
    "gemma-3-12b": (262208, 3840, 16, 256, 8, 15360, 48),
    "gemma-3-27b": (262208, 5376, 32, 128, 16, 21504, 62),
    "gpt-j-6b": (50400, 4096, 16, 256, 16, 10923, 28),
}
_ML_ENERGY = {
    "Llama-3.1-8B-Instruct": "llama-3-8b",
    "Llama-3.1-70B-Instruct": "llama-3-70b",
    "Llama-3.3-70B-Instruct": "llama-3-70b",
    "Llama-3.1-405B-Instruct": "llama-3.1-405b",
    "Llama-3.1-405B-Instruct-FP8": "llama-3.1-405b",
    "Qwen3-8B": "qwen3-8b",
    "Qwen3-14B": "qwen3-14b",
    "Qwen3-32B": "qwen3-32b",
    "gemma-3-12b-it": "gemma-3-12b",
    "gemma-3-27b-it": "gemma-3-27b",
}
# GB/s, units, 16-bit TFLOP/s with fp32 sums, fp32 TFLOP/s, W: NVIDIA's data sheets and architecture white papers
# (GeForce halves 16 bit), Apple's bandwidths; rates of Apple's GPUs are 128 ALUs per core at 1.28 to 1.4 GHz.
_GPUS = {
    "3070 8GB": (448, 46, 40.6, 20.3, 220),
    "3080 10GB": (760, 68, 59.5, 29.8, 320),
    "3080 Ti 12GB": (912, 80, 68.2, 34.1, 350),
    "4070 Ti 12GB": (504, 60, 80.2, 40.1, 285),
    "4080 16GB": (717, 76, 97.5, 48.7, 320),
    "RTX 4000 Ada 20GB": (360, 48, 106.9, 26.7, 130),
    "3090 24GB": (936, 82, 71.2, 35.6, 350),
    "4090 24GB": (1008, 128, 165.2, 82.6, 450),
    "RTX 5000 Ada 32GB": (576, 100, 261, 65.3, 250),
    "RTX A6000 48GB": (768, 84, 154.8, 38.7, 300),
    "RTX 6000 Ada 48GB": (960, 142, 364, 91.1, 300),
    "A40 48GB": (696, 84, 149.7, 37.4, 300),
    "L40S 48GB": (864, 142, 362, 91.6, 350),
    "A100 PCIe 80GB": (1935, 108, 312, 19.5, 300),
    "A100 SXM 80GB": (2039, 108, 312, 19.5, 400),
    "H100 PCIe 80GB": (2000, 114, 756, 51.2, 350),
    "M1 7‑Core GPU 8GB": (68.3, 7, 2.29, 2.29, 15),
    "M1 Max 32‑Core GPU 64GB": (409.6, 32, 10.4, 10.4, 60),
    "M2 Ultra 76-Core GPU 192GB": (819.2, 76, 27.2, 27.2, 150),
    "M3 Max 40‑Core GPU 64GB": (409.6, 40, 14.2, 14.2, 60),
}
METAL = ("M1", "M2", "M3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server's steady state."""

    task: str
    device: str
    model: str
    storage: str
    num_devices: int
    asked: int
    """Sequences at once at most."""
    batch: float
    """And on average."""
    new_tokens: float
    age: float
    """Tokens that a running sequence has written on average: E[n^2] / (2 E[n])."""
    token_s: float
    tokens_per_s: float
    joules: float
    """Per new token, of all devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One sequence of llama.cpp."""

    device: str
    model: str
    storage: str
    num_devices: int
    num_tokens: int
    token_s: float
    prompt_s: float
    """Reading as many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A figure of one device that stands in a document."""

    device: str
    runtime: str
    model: str
    storage: str
    tokens_per_s: float
    source: str


_PUBLISHED = (
    ("raspberry_pi_5", "llama.cpp-cpu", "llama-3.2-3b", "q4_k_m", 4.61, "geerlingguy/ollama-benchmark"),
    ("intel_n100", "llama.cpp-cpu", "llama-3.2-3b", "q4_k_m", 9.06, "geerlingguy/ollama-benchmark: N150, same memory"),
    ("jetson_agx_thor", "compiled", "llama-3-8b", "int4-g128", 50.8, "NVIDIA TensorRT-Edge-LLM 0.4.0"),
    ("jetson_orin_nano_super", "compiled", "llama-3.2-3b", "q4f16", 43.07, "NVIDIA's table for Orin Nano Super, MLC"),
    ("jetson_orin_nano_super", "compiled", "llama-3-8b", "q4f16", 19.1, "NVIDIA's table for Orin Nano Super, MLC"),
    ("jetson_agx_orin", "compiled", "llama-3.2-3b", "int4-g128", 61.0, "NVIDIA TensorRT-Edge-LLM, W4A16"),
)
PUBLISHED = tuple(
    Published(device=device, runtime=runtime, model=name, storage=storage, tokens_per_s=speed, source=source)
    for device, runtime, name, storage, speed, source in _PUBLISHED
)


@cache
def model(name: str) -> Model:
    """A model by its true shape."""
    vocabulary, hidden, heads, head_dim, kv_heads, width, layers = _SHAPES[name]
    block = Block(mixer=Attention(num_kv_heads=kv_heads), ffn=GatedFFN(width=width))
    return Model(
        family="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_heads=heads,
        head_dim=head_dim,
        max_positions=131072,
        norm_eps=1e-5,
        rope=Rope(theta=5e5),
        activation="silu",
        has_tied_embeddings=False,
        has_qkv_bias=False,
        has_output_bias=False,
        has_ffn_bias=False,
        has_qk_norm=False,
        layers=(block,) * layers,
    )


@cache
def ceilings(device: str) -> Ceilings:
    """A device by its documents."""
    if device in ("H100", "B200"):
        return datasheet_ceilings(f"{device.lower()}_sxm")
    if device not in _GPUS:
        return datasheet_ceilings(device)
    bandwidth, units, half, single, watts = _GPUS[device]
    return Ceilings(
        read_bytes_per_s=_figure(bandwidth * 1e9),
        flop_per_s={"fp16": _figure(half * 1e12), "bf16": _figure(half * 1e12), "fp32": _figure(single * 1e12)},
        launch_s=_figure(3e-6),
        num_units=units,
        busy_w=_figure(watts),
    )


def ml_energy(folder: Path) -> list[Served]:
    """All dense models, chat and gpqa."""
    rows = []
    for task in ("lm-arena-chat", "gpqa"):
        tasks = json.loads((folder / "ml_energy" / "tasks" / f"{task}.json").read_text())
        for entry in tasks["configurations"]:
            name = entry["model_id"].split("/")[1]
            if name in _ML_ENERGY:
                rows.append(_served(folder, task, name, entry))
    return rows


def llamacpp(folder: Path) -> list[Generated]:
    """Tables 4 to 6: generation and prompt speed by length."""
    rows = []
    for table in (4, 5, 6):
        device = ""
        with (folder / "llamacpp_gpu_bench" / f"table{table}.csv").open(encoding="utf-8") as file:
            for line in csv.DictReader(file):
                device = line["GPU"] or device
                name, _, number = device.partition(" * ")
                size, kept = line["Model"].split()
                for length in (512, 1024, 4096, 8192):
                    if line[f"tg {length}"] != "OOM":
                        rows.append(
                            Generated(
                                device=name,
                                model=f"llama-3-{size.lower()}",
                                storage={"F16": "fp16", "Q4_K_M": "q4_k_m"}[kept],
                                num_devices=int(number or 1),
                                num_tokens=length,
                                token_s=1 / float(line[f"tg {length}"]),
                                prompt_s=length / float(line[f"pp {length}"]),
                            )
                        )
    return rows


def mlperf(folder: Path) -> Iterable[dict]:
    """Offline results of Llama-2 70B and GPT-J on one kind of NVIDIA GPU, TensorRT-LLM, closed division; each once."""
    known = {
        "NVIDIA H100-SXM-80GB": "h100_sxm",
        "NVIDIA H200-SXM-141GB": "h200_sxm",
        "NVIDIA H200-SXM-141GB-CTS": "h200_sxm",
        "NVIDIA L40S": "l40s",
        "NVIDIA Jetson AGX Orin 64G": "jetson_agx_orin",
        "NVIDIA H100-PCIe-80GB": "h100_pcie",
    }
    found = json.loads((folder / "mlperf_v4.1" / "summary_results.json").read_text())
    for entry in found:
        is_mapped = entry["Model"] in ("llama2-70b-99", "gptj-99") and entry["Scenario"] == "Offline"
        is_closed = entry["Category"] == "closed" and not entry["has_power"] and entry["Nodes"] == 1
        if is_mapped and is_closed and entry["Accelerator"] in known and "TensorRT" in entry["Software"]:
            yield {
                "device": known[entry["Accelerator"]],
                "num_devices": int(entry["a#"]),
                "model": {"l": "llama-2-70b", "g": "gpt-j-6b"}[entry["Model"][0]],
                "tokens_per_s": entry["Performance_Result"],
            }


def hat(folder: Path, table: str) -> tuple[np.ndarray, np.ndarray]:
    """What encoder-decoder Transformers do, column by column, and their latency in seconds.

    Columns: one; encoder layers; weights of the encoder's layers; decoder layers; weights of the decoder's layers (its
    attention works in 512 channels whatever its width); width that the head multiplies.
    """
    with (folder / "hat_latency" / f"{table}.csv").open() as file:
        rows = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows])

    encoder, decoder = column("encoder_embed_dim"), column("decoder_embed_dim")
    encoder_layers, decoder_layers = column("encoder_layer_num"), column("decoder_layer_num")
    encoder_weights = 4 * 512 * encoder + 2 * encoder * column("encoder_ffn_embed_dim_avg")
    decoder_weights = 6 * 512 * decoder + 2 * decoder * column("decoder_ffn_embed_dim_avg")
    columns = (
        np.ones(len(rows)),
        encoder_layers,
        encoder_layers * encoder_weights,
        decoder_layers,
        decoder_layers * decoder_weights,
        decoder,
    )
    return np.stack(columns, axis=1), 1e-3 * (column("latency_mean_encoder") + column("latency_mean_decoder"))


def _served(folder: Path, task: str, name: str, entry: dict) -> Served:
    path = folder / "ml_energy" / "models" / f"{entry['model_id'].replace('/', '__')}__{task}.json"
    keys = ("gpu_model", "num_gpus", "max_num_seqs")
    same = [
        each for each in json.loads(path.read_text())["configurations"] if all(each[key] == entry[key] for key in keys)
    ]
    lengths = same[0]["output_length_distribution"]
    middles, counts = np.convolve(lengths["bins"], [0.5, 0.5], "valid"), np.array(lengths["counts"])
    return Served(
        task=task,
        device=entry["gpu_model"],
        model=_ML_ENERGY[name],
        storage="fp8" if entry["weight_precision"] == "fp8" else "bf16",
        num_devices=entry["num_gpus"],
        asked=entry["max_num_seqs"],
        batch=entry["avg_batch_size"],
        new_tokens=entry["avg_output_len"],
        age=float((counts * middles**2).sum() / (counts * middles).sum() / 2),
        token_s=1e-3 * entry["median_itl_ms"],
        tokens_per_s=entry["output_throughput_tokens_per_sec"],
        joules=entry["energy_per_token_joules"],
    )


def _figure(value: float) -> Figure:
    return Figure(value=value, low=0.95 * value, high=value, origin="modelled", source="the maker's data sheet")
