"""The parent and the child that the scripts beside this one race on a GPU, and what their tokens cost at least."""

from dataclasses import dataclass, replace

from blockwright.count import ffn_weight_bytes, kv_bytes_per_slot, matrix_bytes, mixer_weight_bytes
from blockwright.llama import llama
from blockwright.spec import Attention, Block, GatedFFN, Model, NoOp

WARM_TOKENS = 4
"""Written before those that are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large."""

    hidden: int
    heads: int
    head_dim: int
    width: int
    vocab: int
    layers: int
    contexts: tuple[int, ...]
    prompt: int
    new_tokens: int
    rounds: int


FULL = Plan(
    hidden=1024,
    heads=16,
    head_dim=64,
    width=2816,
    vocab=32000,
    layers=16,
    contexts=(128, 4096),
    prompt=512,
    new_tokens=32,
    rounds=9,
)
SMALL = Plan(
    hidden=64,
    heads=4,
    head_dim=16,
    width=128,
    vocab=256,
    layers=4,
    contexts=(16, 300),
    prompt=48,
    new_tokens=2,
    rounds=2,
)


def most_tokens(plan: Plan, tokens: int) -> int:
    """How long a text gets that begins with a prompt of so many tokens."""
    return tokens + WARM_TOKENS + plan.new_tokens


def parent_of(plan: Plan) -> Model:
    """The same layer throughout."""
    block = Block(mixer=Attention(num_kv_heads=plan.heads // 4), ffn=GatedFFN(width=plan.width))
    return llama(
        (block,) * plan.layers,
        vocab_size=plan.vocab,
        hidden_size=plan.hidden,
        num_heads=plan.heads,
        head_dim=plan.head_dim,
        max_positions=max(most_tokens(plan, tokens) for tokens in (*plan.contexts, plan.prompt)),
    )


def child_of(plan: Plan) -> Model:
    """As the parent, but of every four layers only one is whole."""
    parent = parent_of(plan)
    whole = parent.layers[0]
    fewer_heads = Block(mixer=Attention(num_kv_heads=1), ffn=GatedFFN(width=plan.width // 2))
    layers = (whole, fewer_heads, replace(whole, mixer=NoOp()), replace(whole, ffn=NoOp()))
    return replace(parent, layers=tuple(layers[index % 4] for index in range(plan.layers)))


def bytes_per_token(model: Model, context: int, bytes_per_value: int = 4) -> int:
    """What one new token reads at least: all layers' weights, the head, and the cache of what stands before it.

    Args:
        model: with the formats that its weights are stored in.
        context: tokens before it; of a batch all of theirs, which share the weights.
        bytes_per_value: of the cache.
    """
    layers = sum(mixer_weight_bytes(model, b.mixer) + ffn_weight_bytes(model, b.ffn) for b in model.layers)
    cache = sum(kv_bytes_per_slot(model, block.mixer, bytes_per_value) for block in model.layers)
    return layers + matrix_bytes(model.hidden_size, model.vocab_size, model.embedding_weights) + context * cache
