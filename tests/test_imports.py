"""Which room may import which, read from the sources; and what the light modules must not load."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERY_ROOM = {"core", "hw_profiles", "compile", "train", "profiler", "search", "report"}
MAY_IMPORT = {
    "core": {"core"},
    "hw_profiles": {"core"},
    "compile": {"core"},
    "train": {"core"},
    "profiler": {"core", "hw_profiles", "compile"},
    "search": {"core", "hw_profiles", "blockwright.profiler.cost_model"},
    "report": {"core", "hw_profiles", "search"},
    "pipeline": EVERY_ROOM,
    "cli": EVERY_ROOM | {"pipeline"},
    "__main__": {"cli"},
}


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports between modules, given as their sources by name."""
    wrong: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        tree, room = ast.parse(source), _room_of(module)
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        local = {node for function in functions for node in ast.walk(function)}
        found = [(node, target) for node in ast.walk(tree) for target in _imported(node, module, sources)]
        graph[module] = {target for _, target in found}
        for node, target in found:
            if not {_room_of(target), target} & (MAY_IMPORT[room] | {room}):
                wrong.append(f"{module} imports {target}")
            if node in local and room != "cli":
                wrong.append(f"{module} imports {target} inside a function")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append("a circle: " + " → ".join(error.args[1]))
    return wrong


def _imported(node: ast.AST, module: str, sources: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "blockwright")
    if isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
        names = {f"{base}.{alias.name}" for alias in node.names}
        if base.split(".")[0] == "blockwright":
            yield from (name if name in sources else base for name in names)


def _room_of(module: str) -> str:
    second = module.split(".")[1] if "." in module else ""
    return second if second in MAY_IMPORT else "core"


def _project_sources() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    sources = {}
    for package in settings["packages"]:
        folder = settings["package-dir"].get(package, package.replace(".", "/"))
        for path in (ROOT / folder).glob("*.py"):
            sources[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path.read_text()
    return sources


def test_rooms_import_along_the_arrows_only() -> None:
    sources = _project_sources()
    assert {_room_of(module) for module in sources} == set(MAY_IMPORT)
    assert violations(sources) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"blockwright.search.a": "from blockwright.train.b import c"},
        {"blockwright.train.a": "import blockwright.compile.b"},
        {"blockwright.compile.a": "from blockwright.hw_profiles.profile import Profile"},
        {"blockwright.search.a": "from blockwright.profiler.measure import measure"},
        {"blockwright.spec": "from blockwright.pipeline.stage import Stage"},
        {"blockwright.model.a": "from ..train.b import c"},
        {"blockwright.report.a": "from blockwright.cli.main import main"},
        {"blockwright.pipeline.a": "def f():\n    from blockwright.spec import Model"},
        {"blockwright.spec": "import blockwright.count", "blockwright.count": "from blockwright.spec import Model"},
        {"blockwright.spec": "from blockwright import count", "blockwright.count": "from . import spec"},
    ],
)
def test_an_import_against_the_arrows_is_found(sources: dict[str, str]) -> None:
    assert len(violations(sources)) == 1


@pytest.mark.parametrize(
    "sources",
    [
        {"blockwright.search.a": "from blockwright.profiler.cost_model import predict"},
        {"blockwright.cli.a": "def f():\n    from blockwright.train.b import c"},
        {"blockwright.train.a": "import torch\nfrom blockwright.spec import Model\nfrom . import muon"},
    ],
)
def test_an_import_along_the_arrows_passes(sources: dict[str, str]) -> None:
    assert violations(sources) == []


@pytest.mark.parametrize(
    "module",
    ["blockwright.spec", "blockwright.search.choose", "blockwright.profiler.cost_model", "blockwright.library"],
)
def test_light_modules_load_no_heavy_packages(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'onnxruntime', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
