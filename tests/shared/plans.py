"""Plans about this machine, for the tests of what is made of them."""

from blockwright.cost import Load
from blockwright.hw_profiles.device import this_device
from blockwright.search.plan import Plan
from blockwright.spec import Model, format_of_model


def plan_here(parent: Model, child: Model) -> Plan:
    """A plan for this machine, optimal by its own word, that promises nothing."""
    device = this_device().name
    return Plan(
        schema_version=2,
        status="optimal",
        parent=parent,
        child=child,
        score=0.5,
        bound=0.5,
        metric="kl",
        profile=device,
        devices={device: device},
        backend="onnxruntime",
        format=format_of_model(child),
        loads={"chat": Load(batch=1, prompt_tokens=8, new_tokens=8)},
        batches={},
        promises=(),
        budgets=(),
        frontier=(),
        pool=(),
    )
