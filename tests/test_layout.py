"""The folders on disk, the links between them and the packaging agree."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = sorted(init.parent.name for init in ROOT.glob("*/__init__.py") if init.parent.name != "blockwright")


def _packages_in(folder: Path, name: str) -> set[str]:
    below = (child for child in folder.iterdir() if (child / "__init__.py").exists() and not child.is_symlink())
    return {name}.union(*(_packages_in(child, f"{name}.{child.name}") for child in below))


def test_every_package_on_disk_is_packaged() -> None:
    on_disk = _packages_in(ROOT / "blockwright", "blockwright")
    for room in ROOMS:
        on_disk |= _packages_in(ROOT / room, f"blockwright.{room}")
    assert set(SETUPTOOLS["packages"]) == on_disk
    assert len(SETUPTOOLS["packages"]) == len(on_disk)


def test_every_room_has_a_link_of_its_name_and_no_other_link_exists() -> None:
    links = {path.name: path for path in (ROOT / "blockwright").iterdir() if path.is_symlink()}
    assert sorted(links) == ROOMS
    for name, link in links.items():
        assert link.readlink() == Path("..") / name
        assert link.resolve() == ROOT / name


def test_every_room_is_mapped_to_its_folder() -> None:
    assert SETUPTOOLS["package-dir"] == {"blockwright": "blockwright"} | {f"blockwright.{room}": room for room in ROOMS}
