"""PTX as text: what an entry is called, which parameters it takes, and how to take off those that nobody passes.

Triton adds two pointers to scratch memory behind the arguments that a kernel declares. Ours need none of it, and
TensorRT and C++ callers would have to pass them all the same.
"""

import re

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr[^\n,]*?)?(\w+)\s*(?:,|$)")


def entry_name(ptx: str) -> str:
    """The only kernel's."""
    names = [match[1] for match in _ENTRY.finditer(ptx)]
    assert len(names) == 1, f"one entry, not {names}"
    return names[0]


def parameter_types(ptx: str) -> list[str]:
    """Of the only kernel: ``u64`` for a pointer, ``u32`` for a whole number."""
    return [kind for kind, _ in _parameters(ptx)]


def version(ptx: str) -> tuple[int, int]:
    """Of the PTX language that it is written in."""
    match = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)
    assert match, "PTX states its version"
    return int(match[1]), int(match[2])


def target(ptx: str) -> str:
    """Whom it is for, as ``sm_90a``."""
    match = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert match, "PTX states its target"
    return match[1]


def without_scratch(ptx: str, num_arguments: int) -> str:
    """The kernel with its first parameters only; the others must be read nowhere."""
    entry = _ENTRY.search(ptx)
    assert entry, "a kernel"
    parameters = _parameters(ptx)
    body = ptx[entry.end() :]
    for _, name in parameters[num_arguments:]:
        assert not re.search(rf"\b{name}\b", body), f"{name} is read"
    assert len(parameters) >= num_arguments, "as many as are declared"
    kept = ",".join(entry[2].split(",")[:num_arguments])
    return f"{ptx[: entry.start(2)]}{kept}\n{ptx[entry.end(2) :]}"


def _parameters(ptx: str) -> list[tuple[str, str]]:
    entry = _ENTRY.search(ptx)
    assert entry, "a kernel"
    return [(match[1], match[2]) for match in _PARAMETER.finditer(entry[2].strip())]
