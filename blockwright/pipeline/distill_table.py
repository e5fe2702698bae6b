"""What distillation did for a child, as a table or as JSON."""

import json
from pathlib import Path

from blockwright.pipeline.distill import Distilled
from blockwright.statistics import Estimate
from blockwright.strict import to_data

_LINES = {
    "KL to the parent, nats per token": "kl",
    "bits per byte": "bits_per_byte",
    "bits per byte over the parent's": "bits_per_byte_ratio",
    "agreement on the next token": "agreement",
}


def print_distilled(distilled: Distilled | None, output: Path, *, as_json: bool) -> None:
    """Prints what was measured before and after, and what to do next."""
    if as_json:
        measured = None if distilled is None else to_data(distilled)
        print(json.dumps({"child": str(output), "quality": measured}, indent=1))
        return
    if distilled is not None:
        print(f"{'held out, 95 % interval':<34}{'before':<28}{'after':<28}")
        for name, field in _LINES.items():
            before, after = getattr(distilled.before, field), getattr(distilled.after, field)
            print(f"{name:<34}{_show(before):<28}{_show(after):<28}".rstrip())
    print(f"{output}: next, blockwright compile {output}")


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"
