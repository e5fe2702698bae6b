"""llama.cpp itself loads what is written for it, and computes and tokenises as torch and tokenizers do."""

import json
import random
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from blockwright.compile.blocked import rounded
from blockwright.compile.export import ExportOrder, read_export, write_export
from blockwright.compile.export_gguf import architecture
from blockwright.compile.export_tokenizer import gguf_tokenizer
from blockwright.compile.ggml import pack_matrix, unpack_matrix
from blockwright.errors import InputError
from blockwright.llama import llama
from blockwright.model.child import build_child, load_child, load_weights, save_child
from blockwright.spec import (
    FFN,
    FP32,
    Attention,
    Block,
    Format,
    GatedFFN,
    LinearMixer,
    Mixer,
    Model,
    NoOp,
    Rope,
    parse_format,
    stored_as,
    with_format,
)

gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf (the extra gguf)")

VOCAB = 300


def _model(*layers: tuple[Mixer, FFN], **changes: Any) -> Model:
    model = llama(
        tuple(Block(mixer=mixer, ffn=ffn) for mixer, ffn in layers),
        vocab_size=VOCAB,
        hidden_size=64,
        num_heads=4,
        head_dim=16,
        max_positions=256,
        has_tied_embeddings=False,
    )
    return replace(model, **changes)


def _attention(num_kv_heads: int = 2) -> Attention:
    return Attention(num_kv_heads=num_kv_heads)


def _ffn(width: int = 64) -> GatedFFN:
    return GatedFFN(width=width)


SAME = ((_attention(), _ffn()),) * 2
MIXED = (
    (_attention(), _ffn()),
    (NoOp(), _ffn(96)),
    (NoOp(), NoOp()),
    (LinearMixer(), _ffn(32)),
    (_attention(4), _ffn()),
)
LENGTH = ("original_max_position_embeddings", 32.0)
LLAMA3 = (("factor", 8.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0), LENGTH)
KINDS = {
    "the same layers": _model(*SAME),
    "the same layers, tied": _model(*SAME, has_tied_embeddings=True),
    "the same layers with biases": _model(*SAME, has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True),
    "the same layers, Llama 3.1": _model(*SAME, rope=Rope(theta=5e5, scaling="llama3", parameters=LLAMA3)),
    "mixed layers": _model(*MIXED),
    "mixed layers, tied": _model(*MIXED, has_tied_embeddings=True),
    "mixed layers with biases": _model(
        MIXED[0], *MIXED[4:], has_qkv_bias=True, has_output_bias=True, has_ffn_bias=True
    ),
    "mixed layers, heads of another size": _model(*MIXED, head_dim=32),
    "mixed layers, another base": _model(*MIXED, rope=Rope(theta=5e5)),
    "mixed layers, Llama 3.1": _model(*MIXED, rope=Rope(theta=1e4, scaling="llama3", parameters=LLAMA3)),
    "mixed layers, linear": _model(*MIXED, rope=Rope(theta=1e4, scaling="linear", parameters=(("factor", 2.0),))),
    "mixed layers, YaRN": _model(*MIXED, rope=Rope(theta=1e4, scaling="yarn", parameters=(("factor", 4.0), LENGTH))),
    "odd widths": _model((_attention(), _ffn(40)), (_attention(1), _ffn(41))),
    "nothing first and last": _model((NoOp(), NoOp()), MIXED[0], (_attention(1), _ffn(41)), (NoOp(), NoOp())),
}


def _child(model: Model) -> PreTrainedModel:
    """A random child: norms and biases are not left at 1 and 0."""
    rope = {"rope_type": model.rope.scaling, "rope_theta": model.rope.theta} | dict(model.rope.parameters)
    rope |= {name: int(value) for name, value in rope.items() if name == LENGTH[0]}
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=2,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_positions,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.has_tied_embeddings,
        rope_parameters=rope,
        attention_bias=model.has_qkv_bias,
        mlp_bias=model.has_ffn_bias,
        bos_token_id=0,
        eos_token_id=0,
    )
    child = build_child(model, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim > 1 else 0.2)
        + (1.0 if "norm" in name else 0.0)
        for name, tensor in child.state_dict().items()
    }
    if model.has_tied_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return load_weights(child, weights)


def _write(model: Model, weights: Format, small_parent: Path, folder: Path) -> PreTrainedModel:
    """Writes a child and its GGUF file; returns the child as the file holds it."""
    child, tokenizer = _child(model), PreTrainedTokenizerFast.from_pretrained(small_parent)
    partial = ["\ufffd" in str(tokenizer.decode([index])) for index in range(VOCAB)]
    for matrix in (child.model.embed_tokens.weight, child.lm_head.weight):
        matrix.data[torch.tensor(partial)] = 0  # the server holds bytes back that are no whole character
    source = folder / "child"
    source.mkdir()
    save_child(child, model, tokenizer, source, {})
    stored = with_format(model, weights)
    order = ExportOrder(model=stored, target="llama.cpp", is_child=True, built_from="")
    write_export(order, source, folder / "out")
    with torch.no_grad():
        for name, parameter in child.named_parameters():
            own = stored.embedding_weights if "embed" in name or "head" in name else weights
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(_as_stored(parameter.numpy(), own)))
    return child


def _as_stored(weight: np.ndarray, weights: Format) -> np.ndarray:
    if weights.group_size is not None:
        return unpack_matrix(pack_matrix(weight, weights)[0], weights)
    return weight.astype(np.float16).astype(np.float32) if weights.name == "fp16" else weight


@contextmanager
def _server(file: Path) -> Iterator[Any]:
    """llama.cpp with the file, in one thread, with a cache in fp32."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp runs in the package xllamacpp (the extra clients)")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_parallel, settings.n_ctx, settings.warmup = 1, 256, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    yield xllamacpp.Server(settings)


def _post(server: Any, path: str, data: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{server.listening_address}/{path}", data=json.dumps(data).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def _generate(server: Any, prompt: list[int], num_tokens: int) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens but for the one that ends a text, and the logarithms of all probabilities before each."""
    asked = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0, "n_probs": VOCAB, "ignore_eos": True}
    content = _post(server, "completion", asked)["completion_probabilities"]
    logs = np.zeros((len(content), VOCAB))
    for step, token in enumerate(content):
        for other in token["top_logprobs"]:
            logs[step, other["id"]] = other["logprob"]
    return [token["id"] for token in content], logs


@torch.no_grad()
def _expected(child: PreTrainedModel, prompt: list[int], tokens: list[int]) -> np.ndarray:
    logits = child(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits, dim=-1).numpy()


def _off_by(file: Path, *children: PreTrainedModel) -> tuple[float, list[float]]:
    """What llama.cpp's choices fall short of the first child's, and how far its logits are from theirs.

    Both over a whole generation and in shares of the spread of the logits; the distance is a root mean square.
    """
    draw = random.Random(0)
    prompt = [draw.randrange(1, VOCAB) for _ in range(40)]
    with _server(file) as server:
        tokens, logs = _generate(server, prompt, 12)
    assert len(tokens) == 12
    expected = [_expected(child, prompt, tokens) for child in children]
    short = expected[0][:, 1:].max(axis=1) - expected[0][range(len(tokens)), tokens]
    return float(short.max() / expected[0].std()), [
        float(np.sqrt(np.mean(np.square(logs - other))) / other.std()) for other in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_generates_what_torch_does(kind: str, small_parent: Path, tmp_path: Path) -> None:
    child = _write(KINDS[kind], FP32, small_parent, tmp_path)
    short, (off_by,) = _off_by(tmp_path / "out" / "model.gguf", child)
    assert short == 0
    assert off_by < 1e-5


@pytest.mark.parametrize("kind", ["the same layers", "mixed layers", "mixed layers, tied"])
@pytest.mark.parametrize(("weights", "most"), [("fp16", 0.003), ("int8", 0.06), ("int4", 0.06), ("int4-g64", 0.06)])
def test_llama_cpp_generates_from_rounded_weights_what_torch_does(
    weights: str, most: float, kind: str, small_parent: Path, tmp_path: Path
) -> None:
    model = KINDS[kind]
    if weights == "int4-g64":
        model = replace(model, layers=tuple(replace(b, ffn=_ffn(128)) for b in model.layers))
    child = _write(model, parse_format(weights), small_parent, tmp_path)
    plain = load_child(tmp_path / "child", model)
    short, (off_by, off_plain) = _off_by(tmp_path / "out" / "model.gguf", child, plain)
    assert off_by < most  # llama.cpp rounds what is multiplied to 8 bits too, and to 16 beside fp16
    assert short < 3 * most
    assert off_by < off_plain / (5 if "int4" in weights else 1)


def test_the_attention_of_a_layer_without_an_ffn_is_refused_by_name(small_parent: Path, tmp_path: Path) -> None:
    model = _model(*SAME, (_attention(), NoOp()))
    with pytest.raises(InputError, match="layer 2: the attention of a layer with a no-op ffn is dropped"):
        _write(model, FP32, small_parent, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        (_model(MIXED[0], (_attention(), _ffn(40))), "int4", "layer 1: 40 channels are no multiple of the group of 32"),
        (_model(*SAME), "int4-g16", "layer 0: groups of 16 do not fill the blocks of 32"),
        (_model(*SAME), "bf16", "layer 0: bf16 is not written, only fp32, fp16, int8, int4"),
        (_model(*SAME, has_qk_norm=True), "fp32", "norms on queries and keys"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_before_anything_is_written(
    model: Model, weights: str, words: str, tmp_path: Path
) -> None:
    order = ExportOrder(
        model=with_format(model, parse_format(weights)), target="llama.cpp", is_child=True, built_from=""
    )
    with pytest.raises(InputError, match=words):
        write_export(order, tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_layers_of_one_shape_are_a_llama() -> None:
    assert [architecture(KINDS[kind]) for kind in ("the same layers", "mixed layers")] == ["llama", "deci"]
    nothing = (NoOp(), NoOp())
    assert architecture(_model(nothing, *SAME, nothing)) == "llama"
    assert architecture(_model((LinearMixer(), _ffn()))) == "deci"


@pytest.mark.parametrize("text", ["int4", "int8", "int4-g128"])
def test_our_codes_are_read_back_exactly_but_for_the_scale(text: str) -> None:
    weights = parse_format(text)
    weight_NK = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    blocks, error = pack_matrix(weight_NK, weights)
    from_ggml = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType["Q8_0" if weights.name == "int8" else "Q4_0"])
    assert np.array_equal(unpack_matrix(blocks, weights), from_ggml)
    ours = rounded(weight_NK.T, weights).T
    off_by = np.sqrt(np.mean(np.square(from_ggml - ours)) / np.mean(np.square(ours)))
    assert off_by == pytest.approx(error, rel=1e-3)
    assert 0 < error < 2**-11


def test_a_file_cut_short_is_noticed(small_parent: Path, tmp_path: Path) -> None:
    _write(KINDS["mixed layers"], FP32, small_parent, tmp_path)
    assert read_export(tmp_path / "out").format == "fp32"
    file = tmp_path / "out" / "model.gguf"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.gguf: got .* bytes"):
        read_export(tmp_path / "out")


def test_each_layer_is_stored_as_a_plan_says(small_parent: Path, tmp_path: Path) -> None:
    int4, fp16 = parse_format("int4"), Format(name="fp16")
    plain = _model(*SAME)
    first, second = plain.layers
    layers = (
        Block(mixer=stored_as(first.mixer, int4), ffn=first.ffn),
        replace(second, ffn=stored_as(second.ffn, fp16)),
    )
    source = tmp_path / "child"
    source.mkdir()
    save_child(_child(plain), plain, PreTrainedTokenizerFast.from_pretrained(small_parent), source, {})
    order = ExportOrder(model=replace(plain, layers=layers), target="llama.cpp", is_child=True, built_from="")
    assert write_export(order, source, tmp_path / "out").format == "mixed"
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == types["blk.1.attn_norm.weight"] == "F32"
    assert types["blk.1.ffn_up.weight"] == "F16"


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
    _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def _train(tokenizer: Tokenizer, alphabet: list[str]) -> None:
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
    _write(_model(*SAME), FP32, small_parent, tmp_path)
    _save(tokenizer, tmp_path / "child")
    fields = gguf_tokenizer(tmp_path / "child", VOCAB)
    assert fields["tokenizer.ggml.pre"] == name.partition(",")[0]
    order = ExportOrder(model=_model(*SAME), target="llama.cpp", is_child=True, built_from="")
    write_export(order, tmp_path / "child", tmp_path / "out")
    with _server(tmp_path / "out" / "model.gguf") as server:
        for text in TEXTS:
            if text.startswith(" ") and "always" in name:
                continue  # Metaspace puts no second space there; sentencepiece does, and llama.cpp with it
            asked = {"content": text, "add_special": True, "parse_special": True}
            assert _post(server, "tokenize", asked)["tokens"] == tokenizer.encode(text).ids, text


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
