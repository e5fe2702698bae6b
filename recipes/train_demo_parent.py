"""Trains the demo's parent: a small grouped-query Llama that writes Python.

    python recipes/train_demo_parent.py --work build/demo-parent --tokens 31M
    python recipes/train_demo_parent.py --work build/demo-parent --export recipes/demo-parent

The text is the standard library's sources, less the held-out files of `train/text.py`. Training is
resumable: kill it at any time and start it again with the same flags. The learning rate falls in a straight
line to zero at `--tokens`. The last quarter trains on windows of the full context, what is before it on half
of it, which a CPU does faster.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from blockwright.files import new_file, write_json
from blockwright.train.muon import Muon
from blockwright.train.text import PYTHON_SOURCES, Document, digest, read_documents, split

VOCABULARY = 2048
CONTEXT = 512
END_OF_TEXT = "<|endoftext|>"
# A line end goes with the indentation after it, a word with one sign before it, digits stand alone.
PIECES = r"\n+ *| ?\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    dtype="float32",
)

MUON_LR, ADAMW_LR, WEIGHT_DECAY = 8e-3, 4e-3, 0.05
BATCH_TOKENS, MICRO_BATCH_TOKENS = 8192, 2048
WARMUP_TOKENS, FULL_CONTEXT_SHARE = 400_000, 0.25
CHECKPOINT_S = 300


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (document.text for document in documents),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=CONTEXT
    )


def prepare(work: Path) -> None:
    """Writes the tokenizer and the token streams of both parts; training.npy last, as the sign that all is there."""
    work.mkdir(parents=True, exist_ok=True)
    training, held_out = split(read_documents(PYTHON_SOURCES))
    tokenizer = train_tokenizer(training)
    tokenizer.save_pretrained(work / "tokenizer")
    for name, documents in (("held_out", held_out), ("training", training)):
        order = np.random.default_rng(0).permutation(len(documents))
        ids = [[0, *tokenizer.encode(documents[i].text, add_special_tokens=False)] for i in order]
        tokens = np.concatenate([np.asarray(x, dtype=np.int16) for x in ids])
        num_bytes = sum(len(document.text.encode()) for document in documents)
        print(f"{name}: {len(documents)} files, {num_bytes:,} bytes, {len(tokens):,} tokens")
        write_json(work / f"{name}.json", {"num_bytes": num_bytes, "num_tokens": len(tokens)})
        with new_file(work / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, tokens)


def learning_rate_factor(tokens: int, total: int) -> float:
    """Warm-up, then linear to zero."""
    return min(1.0, (tokens + BATCH_TOKENS) / WARMUP_TOKENS) * max(0.0, 1 - tokens / total)


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, work: Path, device: str, num_windows: int) -> float:
    """Held-out bits per byte over evenly spaced windows."""
    tokens = np.load(work / "held_out.npy")
    facts = json.loads((work / "held_out.json").read_text())
    starts = np.linspace(0, len(tokens) - CONTEXT - 1, num_windows).astype(int)
    nats = 0.0
    for start in starts:
        ids = torch.from_numpy(tokens[start : start + CONTEXT + 1].astype(np.int64)).to(device)
        nats += F.cross_entropy(model(ids[None, :-1]).logits[0].float(), ids[1:]).item()
    return nats / num_windows / math.log(2) * facts["num_tokens"] / facts["num_bytes"]


def batch_at(tokens: np.ndarray, step: int, context: int, device: str) -> torch.Tensor:
    """The token windows of one step: the same for a step whenever it is run."""
    generator = np.random.default_rng(step)
    starts = generator.integers(0, len(tokens) - context - 1, BATCH_TOKENS // context)
    rows = np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(rows).to(device)


def train(work: Path, total_tokens: int, device: str) -> None:
    """Trains until `total_tokens`, from the last checkpoint where there is one."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(device)  # pyright: ignore[reportArgumentType]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    optimizers = [
        Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base_lrs = [MUON_LR, ADAMW_LR]
    tokens = np.load(work / "training.npy")
    checkpoint = work / "checkpoint.pt"
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        print(f"resumed at step {step}")

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "seconds": seconds,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        bpb = bits_per_byte(model, work, device, num_windows=32)
        line = {"step": step, "tokens": step * BATCH_TOKENS, "seconds": round(seconds), "held_out_bits_per_byte": bpb}
        print(json.dumps(line), flush=True)
        with (work / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    saved_at = time.monotonic()
    while step * BATCH_TOKENS < total_tokens:
        started = time.monotonic()
        factor = learning_rate_factor(step * BATCH_TOKENS, total_tokens)
        for optimizer, lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
        context = CONTEXT // 2 if step * BATCH_TOKENS < total_tokens * (1 - FULL_CONTEXT_SHARE) else CONTEXT
        rows = batch_at(tokens, step, context, device)
        micro_batches = rows.split(MICRO_BATCH_TOKENS // context) if device == "cpu" else (rows,)
        for micro in micro_batches:
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                logits = model(micro[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), micro[:, 1:].flatten())
            (loss / len(micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        seconds += time.monotonic() - started
        if time.monotonic() - saved_at > CHECKPOINT_S:
            save()
            saved_at = time.monotonic()
    save()


def export(work: Path, out: Path) -> None:
    """Writes the trained parent as a Hugging Face checkpoint in bf16, with its tokenizer and its training record."""
    state = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = LlamaForCausalLM(CONFIG)
    model.load_state_dict(state["model"])
    model = model.bfloat16()
    model.save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    tokenizer.save_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    record = {
        "text": "the Python standard library's sources, less the held-out files of train/text.py",
        "python": platform.python_version(),
        "text_digest": digest(read_documents(PYTHON_SOURCES)),
        "training": json.loads((work / "training.json").read_text()),
        "held_out": json.loads((work / "held_out.json").read_text()),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "trained_tokens": state["step"] * BATCH_TOKENS,
        "seconds": round(state["seconds"]),
        "held_out_bits_per_byte": round(bits_per_byte(model, work, "cpu", num_windows=256), 4),
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def main() -> None:
    """Parses the flags and trains or exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens and checkpoints")
    parser.add_argument("--tokens", default="31M", help="tokens to train on in all, in millions (default: 31M)")
    parser.add_argument("--export", type=Path, help="write the trained parent to this folder and stop")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not (arguments.work / "training.npy").exists():
        prepare(arguments.work)
    if arguments.export:
        export(arguments.work, arguments.export)
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        train(arguments.work, int(float(arguments.tokens.removesuffix("M")) * 1e6), device)


if __name__ == "__main__":
    main()
