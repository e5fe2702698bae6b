"""Tasks of the evaluation harness, data for them, and a child to try: small, and written here."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from blockwright.model.child import build_child, load_weights, save_child
from blockwright.model.parent import load_tokenizer, open_parent
from blockwright.spec import Attention, Block, GatedFFN, LinearFFN, NoOp

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "an", "owl", "in", "old", "mill", "while", "it", "rained")
NUM_PAIRS, NUM_QUESTIONS, NUM_TEXTS = 40, 24, 5


def write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_data(folder: Path) -> None:
    generator = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(least, most)))

    write_lines(folder / "pairs.jsonl", [{"good": words(3, 6), "bad": words(3, 6)} for _ in range(NUM_PAIRS)])
    questions = [
        {"prompt": words(2, 8), "choices": [words(1, 4) for _ in range(3)], "answer": generator.randrange(3)}
        for _ in range(NUM_QUESTIONS)
    ]
    write_lines(folder / "questions.jsonl", questions)
    (folder / "torn.jsonl").write_text('{"good": "the cat", "bad": "the\n')
    write_lines(folder / "texts.jsonl", [{"text": words(4, 12)} for _ in range(NUM_TEXTS)])


def task_words(name: str, **settings: Any) -> dict[str, Any]:
    return {"task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"} | settings


def data_words(file: str) -> dict[str, Any]:
    return {"data_files": {"test": file}}


def write_tasks(folder: Path) -> None:
    acc = {"metric_list": [{"metric": "acc"}]}
    pair = {"doc_to_text": "", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0, "target_delimiter": "", **acc}
    question = {"doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    weighed = {"metric": "acc", "weight_by_size": False}
    files: dict[str, Any] = {
        "tasks/pairs": task_words("pairs", dataset_kwargs=data_words("pairs.jsonl"), **pair),
        "tasks/questions": task_words(
            "questions",
            dataset_kwargs=data_words("questions.jsonl"),
            target_delimiter=" ",
            **question,
            metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        ),
        "tasks/texts": task_words(
            "texts",
            dataset_kwargs=data_words("texts.jsonl"),
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "bits_per_byte"}],
        ),
        "tasks/both": {"group": "both", "task": ["pairs", "questions"], "aggregate_metric_list": [weighed]},
        "tasks/writing": task_words(
            "writing",
            dataset_kwargs=data_words("texts.jsonl"),
            output_type="generate_until",
            doc_to_text="{{text}}",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "bleu"}],
        ),
        "tasks/no_data": task_words("no_data", dataset_kwargs=data_words("absent.jsonl"), **pair),
        "tasks/torn_data": task_words("torn_data", dataset_kwargs=data_words("torn.jsonl"), **pair),
        "tasks/no_field": task_words(
            "no_field", dataset_kwargs=data_words("pairs.jsonl"), **pair | {"doc_to_choice": "{{x.y}}"}
        ),
        "tasks/no_setting": task_words("no_setting", dataset_kwargs=data_words("pairs.jsonl"), **pair, colour="red"),
        "harness/online": task_words("online", **pair) | {"dataset_path": "allenai/ai2_arc"},
        "orphan/orphan": {"include": "absent.yaml", "task": "orphan"},
        "list/list": ["pairs"],
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "broken").mkdir()
    (folder / "broken" / "broken.yaml").write_text("task: [broken\n")


def write_child(parent_folder: Path, folder: Path) -> None:
    """A child whose layers differ: one without attention, one with fewer heads and one matrix for an ffn."""
    parent = open_parent(str(parent_folder))
    layers = (
        Block(mixer=NoOp(), ffn=GatedFFN(width=32)),
        Block(mixer=Attention(num_kv_heads=1), ffn=LinearFFN()),
    )
    spec = replace(parent.spec, layers=layers)
    empty = build_child(spec, parent.config)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 + (tensor.ndim == 1)
        for name, tensor in empty.state_dict().items()
    }
    folder.mkdir()
    save_child(load_weights(empty, weights), spec, load_tokenizer(parent), folder, {})
