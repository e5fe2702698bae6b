"""Three steps of a small child after its parent, as `test_sharded.py` starts them: alone, or on ranks."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from blockwright.model.child import build_child, load_weights
from blockwright.model.parent import spec_of
from blockwright.model.walk import Walk
from blockwright.spec import Attention, Block, GatedFFN, LinearMixer, NoOp
from blockwright.train.ranks import Ranks
from blockwright.train.sharded import Sharded, clip, joined, share_like, whole

IDS_BT = torch.randint(0, 64, (3, 5, 12), generator=torch.Generator().manual_seed(5))


def steps(ranks: Ranks, is_tied: bool) -> dict[str, Tensor]:
    """The losses, the clipped norms, and the weights and moments at the end, whole."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=is_tied,
    )
    parent = LlamaForCausalLM(config).eval().requires_grad_(False)
    blocks = (
        Block(mixer=NoOp(), ffn=GatedFFN(width=17)),
        Block(mixer=NoOp(), ffn=NoOp()),
        Block(mixer=LinearMixer(), ffn=GatedFFN(width=48)),
    )
    blocks = (*blocks[:1], replace(blocks[1], mixer=Attention(num_kv_heads=1)), *blocks[2:])
    child = build_child(replace(spec_of(config), layers=blocks), config)
    names = [name for name in child.state_dict() if not (is_tied and name == "lm_head.weight")]
    load_weights(child, {name: torch.randn(child.state_dict()[name].shape) * 0.2 for name in names})
    sharded = Sharded(child.requires_grad_(True), parent, ranks)
    parameters = dict(child.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, fused=True)
    found: dict[str, Tensor] = {}
    for step, ids_BT in enumerate(IDS_BT):

        def loss(ids_BT: Tensor = ids_BT) -> Tensor:
            student, teacher, mine = Walk(child), Walk(parent), ranks.shard(ids_BT)
            x_BTD, y_BTD = student.embed(mine), teacher.embed(mine)
            for layer in range(3):
                x_BTD, y_BTD = student.layer(layer, x_BTD), teacher.layer(layer, y_BTD)
            z_BTV = child.model.norm(x_BTD) @ child.lm_head.weight.T
            return (z_BTV - teacher.logits(y_BTD)).square().sum() / ids_BT.numel()

        share = sharded(loss)
        share.backward()
        found[f"loss {step}"] = ranks.sum(share.detach())
        found[f"norm {step}"] = clip(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in parameters.items():
        found[name] = whole(parameter.detach()).contiguous().clone()
        found[f"moment {name}"] = whole(optimizer.state[parameter]["exp_avg"]).clone()
        assert torch.equal(whole(share_like(found[name], parameter)), found[name])
    return found


if __name__ == "__main__":
    with joined() as me:
        results = {tied: steps(me, tied) for tied in (False, True)}
        if me.is_first:
            for tied, tensors in results.items():
                save_file(tensors, Path(sys.argv[1]) / f"{tied}.safetensors")
