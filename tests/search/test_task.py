"""Multiple choice: items as a file, and what the right choice loses."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.model.child import layer_with
from blockwright.model.parent import load_tokenizer, open_parent, spec_of
from blockwright.search.scoring import in_place, replace_one
from blockwright.search.task import batches_of, ids_of, read_questions, task_judge
from blockwright.spec import Candidate, NoOp

GOOD = {"prompt": "the cat sat on", "choices": [" a mat", " the old mill", " owl"], "answer": 1}
OTHER = {"prompt": "it rained", "choices": [" while", " in the tree by the"], "answer": 0}


@pytest.fixture
def tokenizer(small_parent: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(open_parent(str(small_parent)))


@pytest.fixture
def write_items(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: object) -> Path:
        path = tmp_path / "items.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def test_an_item_becomes_the_prompt_and_each_choice_behind_it(
    tokenizer: PreTrainedTokenizerFast, write_items: Callable[..., Path]
) -> None:
    (question, _) = read_questions(write_items(GOOD, "", OTHER), tokenizer, 64)
    assert question.answer == 1
    for sequence, start, choice in zip(question.sequences, question.starts, GOOD["choices"], strict=True):
        assert sequence[0] == tokenizer.bos_token_id
        assert tokenizer.decode(list(sequence[1:start])) == GOOD["prompt"]
        assert tokenizer.decode(list(sequence[start:])) == choice


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("not json", "no JSON"),
        ("7", "7"),
        ({"prompt": "a", "choices": ["b", "c"]}, "no such key"),
        (GOOD | {"anwser": 1}, "an unknown key"),
        (GOOD | {"answer": 3}, "answer"),
        (GOOD | {"answer": -1}, "answer"),
        (GOOD | {"answer": "1"}, "'1'"),
        (GOOD | {"choices": [" a"]}, "choices"),
        (GOOD | {"choices": [" a", " a"]}, "choices"),
        (GOOD | {"choices": [" a", ""]}, "choices"),
        (GOOD | {"prompt": ""}, "prompt"),
        (GOOD | {"prompt": "the cat " * 40}, "tokens with the prompt"),
    ],
)
def test_a_line_that_is_no_item_is_refused_by_its_place(
    line: object, got: str, tokenizer: PreTrainedTokenizerFast, write_items: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=got) as caught:
        read_questions(write_items(GOOD, line), tokenizer, 64)
    assert "items.jsonl:2" in caught.value.field


def test_a_file_that_gives_no_interval_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_items: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=r"1 item\(s\)"):
        read_questions(write_items(GOOD), tokenizer, 64)
    with pytest.raises(InputError, match=r"missing\.jsonl"):
        read_questions(tmp_path / "missing.jsonl", tokenizer, 64)


def test_batches_keep_the_order_and_the_bound(
    tokenizer: PreTrainedTokenizerFast, write_items: Callable[..., Path]
) -> None:
    questions = read_questions(write_items(*[GOOD, OTHER] * 5), tokenizer, 64)
    for bound in (1, 60, 10_000):
        batches = batches_of(questions, bound)
        assert [question for batch in batches for question in batch] == questions
        assert all(len(batch) == 1 or ids_of(batch).numel() <= bound for batch in batches)
    assert len(batches_of(questions, 1)) == 10 and len(batches_of(questions, 10_000)) == 1


def test_the_loss_is_what_the_right_choices_share_loses_sequence_by_sequence(
    tokenizer: PreTrainedTokenizerFast, write_items: Callable[..., Path]
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    questions = read_questions(write_items(GOOD, OTHER), tokenizer, 64)
    candidate = Candidate(layer=0, part="ffn", variant=NoOp())
    layer = layer_with(model, spec_of(config), candidate, {})

    def plain_loss(index: int) -> float:
        """Without batches, padding or hidden states."""
        question = questions[index]
        means = []
        for sequence, start in zip(question.sequences, question.starts, strict=True):
            log_q_TV = model(torch.tensor([sequence])).logits[0].double().log_softmax(-1)
            log_q = [log_q_TV[place - 1, sequence[place]].item() for place in range(start, len(sequence))]
            means.append(sum(log_q) / len(log_q))
        return -means[question.answer] + math.log(sum(math.exp(mean) for mean in means))

    with torch.no_grad():
        parent = [plain_loss(index) for index in range(2)]
        with in_place(model, candidate, layer):
            child = [plain_loss(index) for index in range(2)]
    judge_of = partial(task_judge, questions=questions)
    values = replace_one(model, {candidate: layer}, ids_of(questions), judge_of)[candidate]
    assert values["task"].tolist() == pytest.approx([c - p for c, p in zip(child, parent, strict=True)], rel=1e-5)
