"""Tasks of lm-evaluation-harness, found by name, with their data.

The harness looks tasks up in the YAML files that it brings and in those of a folder. It passes over files that it
cannot read, and fails in as many ways as there are tasks; here both are errors that name the task or the file.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub.errors import HfHubHTTPError

from blockwright.errors import InputError
from blockwright.pipeline.harness import SEED, Key, log_passed_on, part

_DEFAULT_NEW_TOKENS = 256
"""What the harness lets a model write where a task does not say (`HFLM.max_gen_toks`)."""
_MOST_NAMED = 12
_OF_THE_TASK = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
    yaml.YAMLError,
)
"""What comes out of a task's own YAML, templates and functions when something is wrong with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Tasks with their data, ready to be run."""

    loaded: dict[str, dict[str, Any]]
    """As `lm_eval.evaluator.evaluate` takes them: ``tasks``, ``groups`` and ``group_map``."""

    def members(self, key: Key) -> tuple[list[str], bool]:
        """The tasks that a row is about, and whether each weighs as much as it has items."""
        group = self.loaded["groups"].get(key.task)
        if group is None:
            return [key.task], True
        by_metric = {each.metric: each for each in group.aggregate_metric_list}
        return [task.task_name for task in group.get_all_tasks()], by_metric[key.metric].weight_by_size

    def aggregation(self, key: Key) -> Callable[[list[Any]], float] | None:
        """How items become the row's value; None where it is their mean."""
        mean = part("lm_eval.api.metrics").mean
        task = self.loaded["tasks"].get(key.task)
        found = mean if task is None else task.aggregation().get(key.metric, mean)
        return None if found is mean else found


def open_tasks(names: Sequence[str], folder: Path | None) -> Tasks:
    """Finds tasks, groups and tags by name, and gets their data.

    Args:
        names: of the harness's tasks, or of those in `folder`, which come first.
        folder: holds YAML files of tasks, or None.

    Raises:
        InputError: a name is unknown, a YAML file or a task broken, or a task's data cannot be reached.
    """
    with log_passed_on():
        manager = _manager_of(names, folder)
        loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            for kind, found in _load(manager, name).items():
                loaded[kind] |= found
        for name, task in loaded["tasks"].items():
            task.set_fewshot_seed(seed=SEED)
            _check(name, task)
    return Tasks(loaded=loaded)


def check_fits(name: str, task: Any, longest: int) -> None:
    """Refuses a task that asks for more text than a model of `longest` tokens can write.

    Raises:
        InputError: it does.
    """
    if task.OUTPUT_TYPE != "generate_until":
        return
    new_tokens = (task.config.generation_kwargs or {}).get("max_gen_toks", _DEFAULT_NEW_TOKENS)
    if new_tokens >= longest:
        raise InputError(
            f"task {name}: max_gen_toks",
            got=new_tokens,
            expected=f"fewer than the {longest} tokens that the model can hold, prompt included",
            remedy="Leave the task out, or set generation_kwargs: {max_gen_toks: …} in a copy of it in --task-dir.",
        )


def _manager_of(names: Sequence[str], folder: Path | None) -> Any:
    """The index of tasks; the harness's own 14,000 files take half a minute, so only where a name asks for them."""
    manager_of = part("lm_eval.tasks").TaskManager
    defined = {} if folder is None else _defined_in(folder)
    if folder is not None:
        own = manager_of(include_path=str(folder), include_defaults=False)
        for name, file in defined.items():
            if name not in own.all_tasks:
                raise InputError(
                    str(file),
                    got=f"task {name}, which the harness passes over",
                    expected="a task that it can read: what `include` names must be there",
                    remedy="Correct the file.",
                )
        if set(names) <= {*own.all_subtasks, *own.all_tags}:  # a group may have members among the harness's own
            return own
    manager = manager_of(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            raise _unknown(name, manager.all_tasks, list(defined))
    return manager


def _unknown(name: str, known: Sequence[str], own: Sequence[str]) -> InputError:
    near = [*own, *(each for each in known if name.lower() in each.lower() and each not in own)][:_MOST_NAMED]
    hint = f", such as {', '.join(near)}" if near else ""
    return InputError(
        "--tasks",
        got=repr(name),
        expected=f"one of the harness's {len(known)} tasks or of those in --task-dir{hint}",
        remedy="Correct the name, or name the folder of its YAML file with --task-dir.",
    )


def _defined_in(folder: Path) -> dict[str, Path]:
    """The tasks and groups that YAML files in a folder name, without reading what their tags stand for."""
    if not folder.is_dir():
        raise InputError(
            "--task-dir", got=str(folder), expected="a folder with YAML files of tasks", remedy="Check the path."
        )
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.yaml")):
        try:
            node = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _broken_file(file, " ".join(str(error).split())) from error
        if not isinstance(node, yaml.MappingNode):
            raise _broken_file(file, "no mapping of keys to values")
        keys = {key.value: value for key, value in node.value}
        name = keys.get("group", keys.get("task"))  # files with neither are there to be included
        if isinstance(name, yaml.ScalarNode):
            found[name.value] = file
    return found


def _broken_file(file: Path, got: str) -> InputError:
    return InputError(str(file), got=got, expected="a task as YAML, in the harness's form", remedy="Correct the file.")


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loaded = manager.load([name])
    except _unreachable() as error:
        raise InputError(
            f"task {name}: data",
            got=_line(error),
            expected="data that can be reached and read: in local files, in the cache, or online",
            remedy="Check the task's dataset_path and data_files, or run it once where there is a network.",
        ) from error
    except _OF_THE_TASK as error:
        raise _broken_task(name, error) from error
    return {kind: loaded.get(kind, {}) for kind in ("tasks", "groups", "group_map")}


def _unreachable() -> tuple[type[BaseException], ...]:
    """What goes wrong outside of here; the bases are OSError and that of the hub's HTTP client, of whatever name."""
    return (*HfHubHTTPError.__bases__, importlib.import_module("datasets").exceptions.DatasetsError)


def _check(name: str, task: Any) -> None:
    """Refuses a task that we do not run, or whose templates do not fit its first item."""
    for flag, what in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "shows pictures or sound")):
        if getattr(task, flag, False):
            raise InputError(
                f"task {name}", got=f"a task that {what}", expected="a task of text alone", remedy="Leave it out."
            )
    try:
        task.build_all_requests(limit=1)
        task.doc_to_target(task.eval_docs[0])
    except _OF_THE_TASK as error:
        raise _broken_task(name, error) from error


def _broken_task(name: str, error: Exception) -> InputError:
    return InputError(
        f"task {name}",
        got=_line(error),
        expected="a task whose settings, templates and functions fit its data",
        remedy="Correct its YAML file, or what it includes.",
    )


def _line(error: BaseException) -> str:
    """The first line of what went wrong, and of what that came from: the data's errors say it only there."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [f"{type(each).__name__}: {str(each).strip() or 'no message'}".splitlines()[0] for each in (error, cause)]
    return " ← ".join(dict.fromkeys(lines))
