"""A task of the user's own: multiple choice, judged by how much of its share the right choice loses.

The likelihood of a choice is the mean of its tokens' log-probabilities behind the prompt, so that long choices are not
held back by their length. The shares of an item's choices are the softmax of these, and the loss −ln of the right
one's share: unlike accuracy it is smooth, so that few items tell much. The metric ``task`` is the child's loss less
the parent's.

Shapes: B sequences of a batch, one per choice; T tokens; M tokens that are judged; I items; D hidden size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.search.metrics import Head, Judge, chunks
from blockwright.statistics import LEAST_VALUES
from blockwright.strict import from_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question as its file says it."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Which choice is right, from 0."""

    def __post_init__(self) -> None:
        if not self.prompt or not all(self.choices):
            raise ValueError("a prompt and choices that are not empty")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ValueError("two choices or more, each another")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"an answer from 0 to {len(self.choices) - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An item in tokens."""

    sequences: tuple[tuple[int, ...], ...]
    """For each choice the prompt and the choice."""
    starts: tuple[int, ...]
    """For each choice its first token; at least 1."""
    answer: int


def read_questions(path: Path, tokenizer: PreTrainedTokenizerFast, max_positions: int) -> list[Question]:
    """Reads a file of items, one JSON object per line: ``{"prompt": …, "choices": […], "answer": 0}``.

    Raises:
        InputError: names the file and the line of what is no item, or is too long for the parent.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise InputError(
            str(path), got=reason, expected="a file of items, a JSON object per line", remedy="Check the path."
        ) from error
    questions = [
        _question_of(_item_of(line, f"{path}:{number}"), f"{path}:{number}", tokenizer, max_positions)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if len(questions) < LEAST_VALUES:
        raise InputError(
            str(path),
            got=f"{len(questions)} item(s)",
            expected=f"at least {LEAST_VALUES}, for an interval",
            remedy="Add items.",
        )
    return questions


def batches_of(questions: Sequence[Question], tokens_at_once: int) -> list[list[Question]]:
    """Cuts questions, in their order, into batches of at most so many tokens with padding, or of one question."""
    batches: list[list[Question]] = []
    for question in questions:
        if batches and ids_of([*batches[-1], question]).numel() <= tokens_at_once:
            batches[-1].append(question)
        else:
            batches.append([question])
    return batches


def ids_of(questions: Sequence[Question]) -> Tensor:
    """All choices of all questions, ids_BT. What fills the rows stands behind, where no token before it looks."""
    rows = [row for question in questions for row in question.sequences]
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def task_judge(head: Head, parent_BTD: Tensor, questions: Sequence[Question]) -> Judge:
    """Makes the judge of a batch of questions: a value for each."""
    parent_I = _losses(head, parent_BTD, questions)
    return lambda child_BTD: {"task": _losses(head, child_BTD, questions) - parent_I}


def _losses(head: Head, x_BTD: Tensor, questions: Sequence[Question]) -> Tensor:
    """−ln of the right choice's share, for each question."""
    rows = [(row, start) for q in questions for row, start in zip(q.sequences, q.starts, strict=True)]
    places = [(index, place) for index, (row, start) in enumerate(rows) for place in range(start, len(row))]
    row_M, place_M = torch.tensor(places, device=x_BTD.device).T
    target_M = torch.tensor([rows[index][0][place] for index, place in places], device=x_BTD.device)
    h_MD = head.norm(x_BTD[row_M, place_M - 1])
    log_q_M = torch.cat(
        [
            (h_MD[part] @ head.weight_VD.T).log_softmax(dim=-1).gather(1, target_M[part, None])[:, 0]
            for part in chunks(len(h_MD), len(head.weight_VD))
        ]
    )
    sum_B = log_q_M.new_zeros(len(rows)).index_add_(0, row_M, log_q_M)
    mean_B = sum_B / torch.tensor([len(row) - start for row, start in rows], device=x_BTD.device)
    by_question = mean_B.split([len(q.sequences) for q in questions])
    return torch.stack([-each.log_softmax(dim=0)[q.answer] for each, q in zip(by_question, questions, strict=True)])


def _item_of(line: str, place: str) -> Item:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(
            place,
            got=f"no JSON ({error})",
            expected='{"prompt": "…", "choices": ["…", "…"], "answer": 0}',
            remedy="Correct the line.",
        ) from error
    return from_data(Item, data, place)


def _question_of(item: Item, place: str, tokenizer: PreTrainedTokenizerFast, max_positions: int) -> Question:
    first = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(token, int)][:1]
    sequences: list[tuple[int, ...]] = []
    starts: list[int] = []
    for index, choice in enumerate(item.choices):
        # As one text, for what the tokenizer makes of a choice depends on what stands before it.
        encoding = tokenizer.backend_tokenizer.encode(item.prompt + choice, add_special_tokens=False)
        begins = [number for number, (_, end) in enumerate(encoding.offsets) if end > len(item.prompt)]
        sequence = (*first, *encoding.ids)
        start = len(first) + begins[0] if begins else 0
        if start < 1:
            raise InputError(
                f"{place}: choices[{index}]",
                got=f"{choice!r}, which is no token of its own behind the prompt",
                expected="a prompt of one token and a choice of one token, at least",
                remedy="Correct the item.",
            )
        if len(sequence) > max_positions:
            raise InputError(
                f"{place}: choices[{index}]",
                got=f"{len(sequence)} tokens with the prompt",
                expected=f"at most the parent's context of {max_positions}",
                remedy="Shorten the item.",
            )
        sequences.append(sequence)
        starts.append(start)
    return Question(sequences=tuple(sequences), starts=tuple(starts), answer=item.answer)
