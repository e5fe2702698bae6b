"""Tokenizers in GGUF files, as llama.cpp reads them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from blockwright.compile.export import ExportOrder, write_export
from blockwright.compile.export_tokenizer import gguf_tokenizer
from blockwright.errors import InputError
from blockwright.spec import (
    FP32,
)
from gguf_files import (
    SAME,
    VOCAB,
    gguf_model,
    post,
    server_of,
    write_gguf,
)

UNICODE = random.Random(1)
TEXTS = [
    "Hello world",
    " two  spaces\tand\n\nlines \r\n end ",
    "don't WON'T I'll they've 12345 x1y22",
    "naïve Ünïcode ﬁ 日本語 テスト 🙂👍🏽 ١٢٣",
    "def f(x):\n    return x**2  # comment\n\n\n",
    "...!!! ??<s>?$%^&*() a_b_c   ",
    "".join(UNICODE.choice("ab c1\n2'sé日🙂.,\t") for _ in range(200)),
]
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pattern: str | None = None, has_digits: bool = False, ignores_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    bytes_last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    first = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if has_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_last]) if first else bytes_last
    tokenizer.decoder = decoders.ByteLevel()
    train_tokenizer(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def train_tokenizer(tokenizer: Tokenizer, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)


def _pieces(scheme: str | None, is_whole: bool = True) -> Tokenizer:
    """As in sentencepiece: a few words, and every way to put each together."""
    words = ["▁the", "▁world", "lo", "llo", "▁He", "ing", "▁two", "12", "日本"]
    vocabulary = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for character in sorted(set("".join(words))):
        vocabulary.setdefault(character, len(vocabulary))
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            piece = word[:end]
            if piece in vocabulary:
                continue
            cuts = [(piece[:cut], piece[cut:]) for cut in range(1, end)]
            pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
            merges += pairs if is_whole else pairs[:1]
            vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    if scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": lambda: _byte_level(has_digits=True),
    "llama-bpe": lambda: _byte_level(LLAMA3_PATTERN, ignores_merges=True),
    "dbrx": lambda: _byte_level(LLAMA3_PATTERN),
    "qwen2": lambda: _byte_level(LLAMA3_PATTERN.replace("{1,3}", "")),
    "default": lambda: _pieces(None),
    "default, always a space": lambda: _pieces("always"),
    "default, no space": lambda: _pieces("never"),
}


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [0, 1]}')


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_parts_text_as_the_tokenizer_does(name: str, small_parent: Path, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    write_gguf(gguf_model(*SAME), FP32, small_parent, tmp_path)
    _save(tokenizer, tmp_path / "child")
    fields = gguf_tokenizer(tmp_path / "child", VOCAB)
    assert fields["tokenizer.ggml.pre"] == name.partition(",")[0]
    order = ExportOrder(model=gguf_model(*SAME), target="llama.cpp", is_child=True, built_from="")
    write_export(order, tmp_path / "child", tmp_path / "out")
    with server_of(tmp_path / "out" / "model.gguf") as server:
        for text in TEXTS:
            if text.startswith(" ") and "always" in name:
                continue  # Metaspace puts no second space there; sentencepiece does, and llama.cpp with it
            asked = {"content": text, "add_special": True, "parse_special": True}
            assert post(server, "tokenize", asked)["tokens"] == tokenizer.encode(text).ids, text


def _changed(tokenizer: Tokenizer, folder: Path, **changes: Any) -> None:
    _save(tokenizer, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    for name, value in changes.items():
        data[name] = data[name] | value if isinstance(value, dict) and isinstance(data.get(name), dict) else value
    (folder / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (_byte_level, {"model": {"type": "WordPiece"}}, "a tokenizer of the kind WordPiece"),
        (lambda: _byte_level(r"\s+|\w+"), {}, "the way of one of its pre-tokenizers: dbrx, gpt-2, llama-bpe"),
        (_byte_level, {"normalizer": {"type": "Lowercase"}}, "text normalised by Lowercase"),
        (lambda: _pieces("always", is_whole=False), {}, "no merge of"),
        (lambda: _pieces("always"), {"pre_tokenizer": {"type": "Whitespace"}}, "text changed by Whitespace"),
        (lambda: _pieces("first"), {}, "a space before a text, but none behind special tokens"),
        (lambda: _pieces("always"), {"pre_tokenizer": None}, "spaces that stay spaces"),
        (lambda: _pieces("always"), {"model": {"unk_token": "<none>"}}, "the unknown token '<none>'"),
        (
            _byte_level,
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                }
            },
            "the special token '<bos>', which is none of its tokens",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused_in_words(
    make: Callable[[], Tokenizer], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    _changed(make(), tmp_path, **changes)
    with pytest.raises(InputError, match=words):
        gguf_tokenizer(tmp_path, VOCAB + 100)


def test_a_special_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    _save(_byte_level(), tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 5000}')
    with pytest.raises(InputError, match=r"the eos token 5000; expected .* one of its 300 tokens"):
        gguf_tokenizer(tmp_path, VOCAB)
    with pytest.raises(InputError, match="ids below the model's 8 embeddings"):
        gguf_tokenizer(tmp_path, 8)


def test_rows_without_a_token_are_unused_and_a_chat_template_goes_along(tmp_path: Path) -> None:
    _save(_byte_level(), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    fields = gguf_tokenizer(tmp_path, VOCAB + 2)
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{VOCAB + 1}]"
    assert fields["tokenizer.ggml.token_type"][-1] == 5 and fields["tokenizer.ggml.token_type"][0] == 3
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (0, 1)
