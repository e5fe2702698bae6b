"""The wheel, installed in a fresh environment and used from another folder."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from blockwright.hw_profiles.folder import read_profile, shipped_profiles
from blockwright.hw_profiles.profile import parent_of
from blockwright.search.scores import Score, ScoreTable, write_scores
from blockwright.search.space import SpaceSettings, candidates
from blockwright.statistics import Estimate

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds our wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, folder / "source", symlinks=True, ignore=ignored)
    build = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
    )
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_holds_everything_under_one_name(installed: Path) -> None:
    (packages,) = installed.parent.glob("lib/python*/site-packages")
    ours = {path.name for path in packages.iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert ours == {"blockwright"}
    profile = f"hw_profiles/{shipped_profiles()[0]}"
    packed = ["search/solve.py", "hw_profiles/device.py", "hw_profiles/profile.schema.json", "report/page.html"]
    packed += ["report/page.css", "compile/cpu_operators.c", "compile/cpu_operators.h"]
    packed += [*(f"{profile}/{name}" for name in ("profile.json", "measurements.csv", "SHA256SUMS"))]
    for file in packed:
        assert (packages / "blockwright" / file).is_file()
    program = "import blockwright.search; print(blockwright.search.__file__)"
    done = subprocess.run([installed / "python", "-c", program], cwd="/", capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(packages)


@pytest.mark.slow
def test_the_wheel_searches_on_a_shipped_profile_from_anywhere(installed: Path, tmp_path: Path) -> None:
    helped = subprocess.run([installed / "blockwright", "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert "blockwright run recipes/demo.yaml" in helped.stdout

    name = shipped_profiles()[0]
    parent = parent_of(read_profile(name))
    scores = []
    for index, candidate in enumerate(candidates(parent, SpaceSettings())):
        own = candidate.variant == getattr(parent.layers[candidate.layer], candidate.part)
        value = 0.0 if own else 0.01 * (1 + index % 7)
        scores.append(
            Score(
                candidate=candidate,
                metric="kl",
                estimate=Estimate(value=value, low=value, high=value, num_values=1),
            )
        )
    write_scores(ScoreTable(parent=parent, scores=tuple(scores)), tmp_path / "scores.parquet")
    command = ["search", "--scores", tmp_path / "scores.parquet", "--profile", name, "--json"]
    command += ["--budget", "time_per_token@chat <= 60%", "--out", tmp_path / "plan.json"]
    done = subprocess.run([installed / "blockwright", *command], cwd="/", capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    assert plan["status"] == "optimal"
    assert plan["budgets"][0]["spent"] <= plan["budgets"][0]["limit"]
