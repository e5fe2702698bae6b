"""What is remarked on of a tokenizer, held against what onnxruntime-genai's own makes of the text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from blockwright.compile.export import ExportOrder, write_export
from blockwright.compile.export_genai import tokenizer_remark
from blockwright.llama import llama
from blockwright.profiler.synthetic import random_weights
from blockwright.spec import Block, GatedFFN, NoOp

LAYERS = (Block(mixer=NoOp(), ffn=GatedFFN(width=64)),)
MODEL = llama(LAYERS, vocab_size=80, hidden_size=64, num_heads=4, head_dim=16, max_positions=64)


@pytest.mark.parametrize(
    ("parted", "is_read"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), True),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]), False),
        (pre_tokenizers.Whitespace(), False),
    ],
)
def test_texts_that_its_tokenizer_misreads_are_remarked_on(
    parted: Any, is_read: bool, small_parent: Path, tmp_path: Path
) -> None:
    text = "I'm 1234 words,  and\n\n  more: 5 of them"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text] * 9, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), parted
    shutil.copyfile(small_parent / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    remark = tokenizer_remark(tmp_path)
    assert (remark is None) == is_read
    genai = pytest.importorskip("onnxruntime_genai", reason="the extra genai serves what is written for it")
    save_file(random_weights(MODEL), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    served = tmp_path / "served"
    write_export(ExportOrder(model=MODEL, target="onnxruntime-genai", is_child=True, built_from=""), tmp_path, served)
    model = genai.Model(str(served))
    try:
        ids = genai.Tokenizer(model).encode(text).tolist()
    except RuntimeError:
        ids = None
    assert (ids == tokenizer.encode(text).ids) == is_read


def test_tokens_around_a_text_are_remarked_on(small_parent: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(small_parent / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert "puts no special tokens" in (tokenizer_remark(tmp_path) or "")
