"""Short distillations in several ways, as `test_ranks_distill.py` starts them: alone, or on ranks."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from blockwright.errors import InputError
from blockwright.model.child import build_child, load_weights
from blockwright.model.parent import spec_of
from blockwright.spec import Attention, Block, GatedFFN, NoOp
from blockwright.train.distill import GkdSettings, distill
from blockwright.train.losses import kl_and_cosine, parse_losses
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import joined, whole
from blockwright.train.teacher_cache import CacheOrder, TeacherCache
from blockwright.train.windows import Batch

PLAIN = GkdSettings(learning_rate=3e-3, checkpoint_steps=2)
WAYS = {
    "muon": replace(PLAIN, optimizer="muon"),
    "recomputed": replace(PLAIN, recomputes_activations=True, parts=2, losses=parse_losses("kl+mse+0.1*lm")),
    "bf16": replace(PLAIN, precision="bf16", recomputes_activations=True),
    "cached": replace(PLAIN, losses=kl_and_cosine(0)),
    "no number": replace(PLAIN, learning_rate=1e30),
    "early stop": replace(PLAIN, learning_rate=0.3, schedule="constant", eval_steps=1, patience=2),
}
NUM_STEPS = 6


def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A child and its parent, the same ones every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    parent = LlamaForCausalLM(config).eval()
    blocks = (
        Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=17)),
        Block(mixer=NoOp(), ffn=GatedFFN(width=48)),
    )
    child = build_child(replace(spec_of(config), layers=blocks), config)
    return load_weights(child, {name: torch.randn(w.shape) * 0.2 for name, w in child.state_dict().items()}), parent


def shards(seed: int, num_batches: int, ranks: Ranks) -> list[Batch]:
    """A rank's windows; the documents in them are of different lengths, so that ranks have other numbers of labels."""
    generator = torch.Generator().manual_seed(seed)
    ids_NBT = torch.randint(0, 64, (num_batches, 4, 12), generator=generator)
    segments_BT = torch.tensor([[0] * 12, [1] * 5 + [2] * 7, [3] * 4 + [-1] * 8, [4] * 11 + [5]])
    return [Batch(ids_BT=ranks.shard(ids_BT), segments_BT=ranks.shard(segments_BT)) for ids_BT in ids_NBT]


def uneven(ranks: Ranks) -> list[Batch]:
    """A rank's windows to stop by: of two ranks the first has one batch more than the other."""
    ids_NT = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(6))
    return [Batch(ids_BT=ids_BT) for ids_BT in ranks.shard(ids_NT).split(1)]


def run(way: str, ranks: Ranks, folder: Path) -> None:
    """Distils in one way, and writes what the first rank knows of it."""
    child, parent = pair()
    batches, held_out = shards(5, NUM_STEPS, ranks), uneven(ranks)
    cache = None
    if way == "cached":
        order = CacheOrder(k=9, temperature=1.0, origin={})
        cache = TeacherCache(folder / f"answers-{ranks.rank}", order, batches)
        cache.open()
        cache.fill(parent, 2, lambda done: None)
    try:
        history = distill(
            child,
            None if cache else parent,
            batches,
            WAYS[way],
            folder / f"{way}.state",
            held_out=held_out,
            top_of=cache.top_of if cache else None,
            ranks=ranks,
        )
    except InputError as error:
        if ranks.is_first:
            (folder / f"{way}.json").write_text(json.dumps(str(error)))
        return
    weights: dict[str, Tensor] = {name: whole(p.detach()).contiguous() for name, p in child.named_parameters()}
    if ranks.is_first:
        save_file(weights, folder / f"{way}.safetensors")
        (folder / f"{way}.json").write_text(json.dumps([asdict(step) for step in history]))


if __name__ == "__main__":
    with joined() as me:
        for each in WAYS:
            run(each, me, Path(sys.argv[1]))
    os._exit(0)  # as blockwright/__main__.py does
