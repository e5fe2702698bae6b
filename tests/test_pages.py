"""The pages for people: short enough in front, their links lead somewhere, the files that they name are there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from pages import PAGES, ROOT, name_of

ROOMS = ("benchmarks", "compile", "hw_profiles", "profiler", "search", "train")
LINK = re.compile(r"\[[^\]]*\]\(\s*([^)\s]+)\s*\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.*)$", re.M)
SPAN = re.compile(r"`([^`\n]+)`")
FILE_NAME = re.compile(r"(?:[\w-]+/)+[\w-]+\.(?:py|c|h|yaml|md)\b")

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def _is_within(path: Path) -> bool:
    return path.exists() and path.resolve().is_relative_to(ROOT)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings; code blocks hold none of ours."""
    headings = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_room_has_its_page() -> None:
    assert {page.parent.name for page in PAGES if page.parent.parent == ROOT} == set(ROOMS)


def test_the_first_page_has_fewer_than_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@every_page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    targets = ["".join(found) for found in LINK.findall(page.read_text())]
    broken = []
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not _is_within(file) or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_first_page_leads_to_all_others() -> None:
    linked = {(ROOT / found[0].partition("#")[0]).resolve() for found in LINK.findall((ROOT / "README.md").read_text())}
    assert [name_of(page) for page in PAGES[1:] if page not in linked] == []


@every_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = {name for span in SPAN.findall(page.read_text()) for name in FILE_NAME.findall(span)}
    named |= set(re.findall(r"^    (?:\w+=\w+ )?python (\S+\.py)", page.read_text(), re.M))
    of_a_kit = {"kit/build.py"}
    assert sorted(name for name in named - of_a_kit if not (ROOT / name).is_file()) == []


def test_the_example_of_the_search_prints_what_stands_below_it() -> None:
    found = re.search(r"```python\n(.*?)```\n\n    (.*)\n", (ROOT / "search" / "README.md").read_text(), re.S)
    assert found is not None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(found[1], "search/README.md", "exec"), {})
    assert printed.getvalue().strip() == found[2].partition("\n")[0]
