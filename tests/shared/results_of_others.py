"""What result files of others say, made up."""

from typing import Any

from blockwright.cost import Load
from blockwright.profiler.imports import Told
from blockwright.spec import parse_format

BF16 = parse_format("bf16")


def told_of(load: str | None, **more: Any) -> Told:
    if load is None:
        return Told(weights=BF16, **more)
    batch, prompt, new = (int(number) for number in load.replace("+", "x").split("x"))
    return Told(load=Load(batch=batch, prompt_tokens=prompt, new_tokens=new), weights=BF16, **more)
