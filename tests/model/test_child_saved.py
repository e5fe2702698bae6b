"""Children as checkpoints: written, loaded by us and by plain transformers, and refused where they are broken."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blockwright.errors import InputError
from blockwright.model.child import (
    STOCK_ARCHITECTURE,
    build_child,
    load_child,
    load_weights,
    save_child,
    spec_of_child,
)
from blockwright.model.parent import spec_of
from blockwright.spec import Attention, Block, GatedFFN, Model
from children import (
    IDS_BT,
    PARENTS,
    Config,
    generate_greedily,
    heterogeneous,
    random_child,
    with_blocks,
    with_windows,
)

CLEAN_LOADER = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "blockwright":
            raise ImportError("Blockwright is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("QUICK", return_tensors="pt").input_ids
    made = [model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)]
    answers.append([tokens[0].tolist() for tokens in made])
assert not any(name.partition(".")[0] == "blockwright" for name in sys.modules)
print(json.dumps(answers))
"""


def test_plain_transformers_loads_a_child_where_blockwright_is_not(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    prompt_BT = torch.tensor([tiny_tokenizer.encode("QUICK")])
    expected = []
    folders = []
    for kind, (family, changes) in PARENTS.items():
        config = tiny_config(family, **changes)
        spec = with_windows(spec_of(config)) if kind.startswith("llama") else heterogeneous(spec_of(config))
        child = random_child(spec, config)
        folder = tmp_path / kind
        folder.mkdir()
        save_child(child, spec, tiny_tokenizer, folder, {"made by": "a test"})
        folders.append(str(folder))
        tokens = generate_greedily(child, prompt_BT, use_cache=True)[0].tolist()
        expected.append(tokens)
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", CLEAN_LOADER, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for cached, uncached, ours in [
        (*pair, tokens) for pair, tokens in zip(json.loads(done.stdout), expected, strict=True)
    ]:
        assert cached[: len(ours)] == ours
        assert cached == uncached
        assert len(cached) == len(ours) + 4


@pytest.mark.parametrize("make", [heterogeneous, with_windows])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_saved_child_comes_back_as_it_was(
    family: str,
    make: Callable[[Model], Model],
    tiny_config: Config,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    config = tiny_config(family, tie_word_embeddings=True)
    spec = make(spec_of(config))
    child = random_child(spec, config)
    save_child(child, spec, tiny_tokenizer, tmp_path, {"made by": "a test"})
    assert spec_of_child(tmp_path) == spec
    with torch.no_grad():
        assert torch.equal(load_child(tmp_path, spec)(IDS_BT).logits, child(IDS_BT).logits)


def test_the_config_says_what_each_layer_is_and_who_can_load_it(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    spec = heterogeneous(spec_of(config))
    save_child(random_child(spec, config), spec, tiny_tokenizer, tmp_path, {"made by": "a test"})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [block["attention"]["n_heads_in_group"] for block in saved["block_configs"]] == [None, 4, None, 1]
    assert [block["attention"]["no_op"] for block in saved["block_configs"]] == [True, False, False, False]
    assert [block["ffn"]["replace_with_linear"] for block in saved["block_configs"]] == [False, False, True, False]
    assert [block["ffn"]["intermediate_size"] for block in saved["block_configs"]] == [20, None, None, 48]
    assert saved["blockwright"]["provenance"] == {"made by": "a test"}
    assert "layer 2: linear replacements are not read" in saved["blockwright"]["engines"]["vllm"]
    assert saved["architectures"] == ["LlamaChildForCausalLM"]


def test_a_child_that_stock_engines_load_carries_their_name_for_it(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama", head_dim=8, intermediate_size=512)
    blocks = [Block(mixer=Attention(num_kv_heads=heads), ffn=GatedFFN(width=256 * heads)) for heads in (1, 2, 2, 1)]
    spec = with_blocks(spec_of(config), *blocks)
    save_child(random_child(spec, config), spec, tiny_tokenizer, tmp_path, {})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [STOCK_ARCHITECTURE]
    assert [block["ffn"]["ffn_mult"] for block in saved["block_configs"]] == [12.0, 24.0, 24.0, 12.0]


def test_a_folder_without_a_child_has_no_spec(tmp_path: Path) -> None:
    assert spec_of_child(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert spec_of_child(tmp_path) is None


def test_a_truncated_child_is_named(
    tiny_config: Config, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    spec = spec_of(config)
    save_child(random_child(spec, config), spec, tiny_tokenizer, tmp_path, {})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError) as caught:
        load_child(tmp_path, spec)
    assert caught.value.field == str(weights)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (lambda weights: weights.update({"model.norm.weight": torch.zeros(31)}), "model.norm.weight"),
    ],
)
def test_weights_of_other_blocks_are_refused(
    damage: Callable[[dict[str, Tensor]], object], name: str, tiny_config: Config
) -> None:
    config = tiny_config("llama")
    weights = dict(random_child(spec_of(config), config).state_dict())
    damage(weights)
    with pytest.raises(InputError) as caught:
        load_weights(build_child(spec_of(config), config), weights)
    assert name in str(caught.value.got)
