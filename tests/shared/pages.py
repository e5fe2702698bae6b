"""The pages for people: README.md, one in each room, and that of the scripts for GPUs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md")), ROOT / "benchmarks" / "gpu" / "README.md"]


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def all_text() -> str:
    """All pages, one after the other."""
    return "\n".join(page.read_text() for page in PAGES)
