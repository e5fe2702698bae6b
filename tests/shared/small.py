"""A parent, a text and a recipe so small that a whole run takes seconds."""

import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parents[2]
SENTENCE = "the cat sat on a mat and saw an owl in the tree by the old mill while it rained"


def write_text(folder: Path) -> None:
    """Writes sixty small texts into a folder that is not there yet."""
    generator = random.Random(0)
    words = SENTENCE.split()
    folder.mkdir()
    for index in range(60):
        (folder / f"{index}.txt").write_text(" ".join(generator.choice(words) for _ in range(400)))


def write_parent(folder: Path, text: Path, vocab_size: int = 300) -> None:
    """Writes an untrained Llama of two layers with a tokenizer trained on the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(file) for file in sorted(text.iterdir())], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def write_small_recipe(folder: Path, **changes: object) -> Path:
    """Writes the demo's recipe, made small, with keys replaced; these must name a parent and a text."""
    recipe = yaml.safe_load((REPOSITORY / "recipes/demo.yaml").read_text())
    recipe |= {
        "name": "small",
        "window_tokens": 32,
        "loads": {"chat": {"batch": 1, "prompt_tokens": 16, "new_tokens": 16}},
        "budgets": ["parameters@chat <= 80%"],
        "profile": {"seconds_per_measurement": 0.01},
        "library": {"tokens": 1024, "batch_windows": 4, "learning_rate": 1e-3},
        "score": {"tokens": 256},
        "search": {"time_limit_s": 10.0, "frontier_points": 4},
        "distill": {"tokens": 2048, "batch_windows": 4, "learning_rate": 1e-3, "cosine_weight": 1.0},
        "measure": {"tokens": 256, "seconds": 0.05, "prompts": ["the cat"], "new_tokens": 8, "temperature": 0.0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path
