"""Whether what Puzzle says of its parts holds at this scale: `python benchmarks/train/orderings.py`.

For each parent and seed, at a budget of parameters, on held-out text, by KL to the parent (Puzzle, arXiv 2411.19146):

1. blockwise local distillation (BLD) against none, a search made for each, before and after global distillation (GKD);
   and against a token-matched control: no BLD, but its tokens added to GKD;
2. half the BLD tokens against all of them;
3. the searched plan against random plans from the same library, and these against random plans with random weights,
   after GKD of the same tokens;
4. losses of GKD from the same child: kl+cosine, kl, and each with a language-modelling term, and that alone.

A claim is reproduced where the paired difference over windows, pooled over seeds, has its whole 95 % interval over
documents on the right side of the margin that is stated, and the mean of every seed lies there too. Every other
outcome is printed as not reproduced at this scale. "No BLD" is a library that trains at a rate of 0: its candidates are
as they begin, and they begin fitted, by least squares where there is a matrix to fit, not at random.

Goes on after a kill, in a folder for each parent, seed and digest of all that was asked for: other tokens, another
recipe, parent or text begin anew. Changed code does not: name another --folder.

Writes benchmarks/results/orderings_<date>.json and .md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from orderings_page import as_text
from provenance import REPOSITORY, RESULTS, origin
from transformers import PreTrainedModel

from blockwright.files import digest_of, new_folder
from blockwright.hw_profiles.device import this_device
from blockwright.hw_profiles.folder import read_profile
from blockwright.library import read_library
from blockwright.model.child import build_child, load_weights, save_child
from blockwright.model.parent import Parent, load_model, load_tokenizer, open_parent
from blockwright.pipeline.distill import distill_child
from blockwright.pipeline.inputs import checkpoint_digest, load_checkpoint, open_checkpoint, read_text, windows_of
from blockwright.pipeline.library import build_library
from blockwright.pipeline.recipe import Recipe, read_recipe
from blockwright.pipeline.run import distill_order, library_order, score_order, search_order
from blockwright.pipeline.score import score_library
from blockwright.pipeline.search import full_order
from blockwright.profiler.synthetic import random_weights
from blockwright.search.baselines import random_feasible
from blockwright.search.build import build_problem
from blockwright.search.choose import candidates_of, child_of
from blockwright.search.problem import Problem
from blockwright.search.scores import read_scores
from blockwright.search.solve import Optimal, solve
from blockwright.spec import FP32, Model, with_format
from blockwright.statistics import estimate_mean
from blockwright.train.quality import compare_windows
from blockwright.train.realise import realise
from blockwright.train.windows import Windows

DEVICE = "h100_sxm"
"""A problem needs a device, though a budget of parameters asks nothing of it."""
LOSSES = ("kl+cosine", "kl", "kl+lm", "kl+cosine+lm", "lm")
NUM_RANDOM = 3
NEARLY = 0.1
"""Half of the tokens are nearly as good where they lose no more than such a share of the KL."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A parent, its text, and how long to train."""

    name: str
    parent: str
    text: str
    window_tokens: int
    bld_tokens: int
    gkd_tokens: int
    gkd_learning_rate: float = 0.002
    """The demo's; a parent that it makes worse gets another."""
    held_out_tokens: int = 16384
    budget: str = "parameters <= 60%"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one thing has less KL than another, or hardly more."""

    text: str
    better: str
    worse: str
    margin_share: float = 0.0
    """Of the worse one's KL: below 0 where the better one may lose by so much."""


CLAIMS = (
    Claim(text="BLD before GKD: less KL than none", better="bld", worse="none"),
    Claim(text="BLD, then GKD: less KL than GKD alone", better="bld gkd", worse="none gkd"),
    Claim(text="BLD, then GKD: less KL than GKD of as many tokens", better="bld gkd", worse="none gkd longer"),
    Claim(text="half the BLD tokens lose no more than a tenth", better="half", worse="bld", margin_share=-NEARLY),
    Claim(text="library and search: less KL than library and random plans", better="bld gkd", worse="random plan gkd"),
    Claim(text="library and random plans: less KL than random weights", better="random plan gkd", worse="random gkd"),
    Claim(text="kl+cosine: less KL than kl", better="loss kl+cosine", worse="loss kl"),
    Claim(text="kl: less KL than kl+lm", better="loss kl", worse="loss kl+lm"),
    Claim(text="kl+cosine: less KL than kl+cosine+lm", better="loss kl+cosine", worse="loss kl+cosine+lm"),
    Claim(text="kl: less KL than kl+cosine+lm", better="loss kl", worse="loss kl+cosine+lm"),
    Claim(text="kl: less KL than lm", better="loss kl", worse="loss lm"),
)


class Bench:
    """One parent and one seed, in a folder of its own."""

    def __init__(self, setting: Setting, seed: int, folder: Path) -> None:
        recipe = read_recipe(REPOSITORY / "recipes" / "demo.yaml")
        self.setting, self.seed = setting, seed
        self.recipe: Recipe = replace(
            recipe,
            parent=setting.parent,
            text=setting.text,
            seed=seed,
            window_tokens=setting.window_tokens,
            budgets=(setting.budget,),
            library=replace(recipe.library, tokens=setting.bld_tokens),
            distill=replace(recipe.distill, tokens=setting.gkd_tokens, learning_rate=setting.gkd_learning_rate),
        )
        self.parent: Parent = open_parent(setting.parent)
        self.model: PreTrainedModel = load_model(self.parent)
        text = read_text(setting.text)
        asked = [repr(self.recipe), repr(setting), checkpoint_digest(self.parent.folder), text.digest]
        self.folder: Path = folder / setting.name / f"seed-{seed}-{digest_of(asked)[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.windows: Windows = windows_of(
            self.parent, text.held_out, length=setting.window_tokens, num_tokens=setting.held_out_tokens, seed=seed
        )

    def losses(self) -> dict[str, np.ndarray]:
        """KL on each held-out window, of every child."""
        path = self.folder / "kl.json"
        if path.exists():
            return {name: np.array(values) for name, values in json.loads(path.read_text()).items()}
        found = {name: self._kl(child) for name, child in self._children()}
        found["random plan gkd"] = np.mean([found.pop(f"random plan {index} gkd") for index in range(NUM_RANDOM)], 0)
        found["random gkd"] = np.mean([found.pop(f"random {index} gkd") for index in range(NUM_RANDOM)], 0)
        path.write_text(json.dumps({name: list(map(float, values)) for name, values in found.items()}))
        return found

    def _children(self) -> Iterator[tuple[str, PreTrainedModel]]:
        rate = self.recipe.library.learning_rate
        libraries = {"bld": (1.0, rate), "half": (0.5, rate), "none": (1.0, 0.0)}
        for name, (share, learning_rate) in libraries.items():
            order = replace(library_order(self.recipe), learning_rate=learning_rate)
            order = replace(order, tokens=int(share * order.tokens))
            build_library(self.parent, order, self.folder / name / "library")
            spec = self._searched(name)
            yield name, self._realised(name, spec, name)
        yield "bld gkd", self._distilled("bld")
        yield "none gkd", self._distilled("none")
        longer = self.setting.gkd_tokens + self.setting.bld_tokens
        yield "none gkd longer", self._distilled("none", "longer", tokens=longer)
        for index, chosen in enumerate(random_feasible(self._problem("bld"), NUM_RANDOM, seed=self.seed)):
            spec = with_format(child_of(self.parent.spec, candidates_of(chosen)), FP32)
            for name, library in ((f"random plan {index}", "bld"), (f"random {index}", None)):
                self._realised(name, spec, library)
                yield f"{name} gkd", self._distilled(name)
        for loss in LOSSES:
            yield f"loss {loss}", self._distilled("bld", loss, loss=loss)

    def _problem(self, name: str) -> Problem:
        folder = self.folder / name
        scores = folder / "scores.parquet"
        score_library(self.parent, folder / "library", score_order(self.recipe), scores)
        return build_problem(read_scores(scores), full_order(search_order(self.recipe), {DEVICE: read_profile(DEVICE)}))

    def _searched(self, name: str) -> Model:
        answer = solve(self._problem(name))
        assert isinstance(answer, Optimal)
        return with_format(child_of(self.parent.spec, candidates_of(answer.chosen)), FP32)

    def _realised(self, name: str, spec: Model, library: str | None) -> PreTrainedModel:
        """A child from a library, or with random weights; it stands in a folder afterwards."""
        if library is None:
            child = load_weights(build_child(spec, self.model.config), self._random(spec))
        else:
            home = self.folder / library / "library"
            child = realise(self.model, read_library(home), home, spec)
        output = self.folder / name / "realised"
        if not output.exists():
            output.parent.mkdir(exist_ok=True)
            with new_folder(output) as temporary:
                save_child(child, spec, load_tokenizer(self.parent), temporary, {})
        return child

    def _random(self, spec: Model) -> dict[str, torch.Tensor]:
        """Matrices as transformers begins them, norms of 1, no biases."""
        generator = torch.Generator().manual_seed(self.seed)

        def first(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            if len(shape) == 2:
                return self.model.config.initializer_range * torch.randn(shape, generator=generator)
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)

        return {name: first(name, array.shape) for name, array in random_weights(spec).items()}

    def _distilled(self, name: str, to: str = "child", **changes: Any) -> PreTrainedModel:
        output = self.folder / name / to / "child"
        output.parent.mkdir(exist_ok=True)
        order = replace(distill_order(self.recipe), **changes)
        distill_child(self.folder / name / "realised", self.parent, order, output)
        return load_checkpoint(open_checkpoint(str(output)))

    def _kl(self, child: PreTrainedModel) -> np.ndarray:
        return compare_windows(child, self.model, self.windows).kl_N


def judge(claim: Claim, benches: Sequence[Bench], found: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The paired difference, worse less better, pooled over seeds, and whether the claim held.

    A document has one number in every seed, so its windows of all seeds are drawn together.
    """
    differences, documents, means = [], [], []
    for bench, losses in zip(benches, found, strict=True):
        worse_N, better_N = losses[claim.worse], losses[claim.better]
        difference_N = worse_N - better_N - claim.margin_share * worse_N
        differences.append(difference_N)
        documents.append(bench.windows.document_N)
        means.append(float(difference_N.mean()))
    pooled = estimate_mean(np.concatenate(differences), np.concatenate(documents))
    return {
        "claim": claim.text,
        "better_kl": float(np.mean([losses[claim.better].mean() for losses in found])),
        "worse_kl": float(np.mean([losses[claim.worse].mean() for losses in found])),
        "difference": asdict(pooled),
        "by_seed": means,
        "is_reproduced": bool(pooled.low > 0 and min(means) > 0),
    }


def main() -> None:
    """Runs every parent and seed, and writes what held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with models/ and text/ of others (default: the demo alone)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-orderings"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = origin(told_command(arguments), this_device()) | {"parents": []}
    for setting in settings(arguments.data):
        benches = [Bench(setting, seed, arguments.folder) for seed in range(arguments.seeds)]
        found = [bench.losses() for bench in benches]
        claims = [judge(claim, benches, found) for claim in CLAIMS]
        results["parents"].append(_told(setting) | {"seeds": arguments.seeds, "claims": claims})
        arguments.out.mkdir(parents=True, exist_ok=True)
        stem = arguments.out / f"orderings_{results['date']}"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(as_text(results))
    print(as_text(results))


def told_command(arguments: argparse.Namespace) -> str:
    """The command without paths of this machine."""
    data = "" if arguments.data is None else " --data DATA"
    return f"python benchmarks/train/orderings.py{data} --seeds {arguments.seeds}"


def settings(data: Path | None) -> list[Setting]:
    """Small Llamas by others where their folder is given, and the demo's parent."""
    found: list[Setting] = []
    if data is not None:
        shared = {"text": str(data / "text" / "tinystories"), "bld_tokens": 32768, "gkd_tokens": 32768}
        for name, rate in (("stories260K", 0.002), ("babyllama105", 0.0001)):
            parent = str(data / "models" / name)
            found.append(Setting(name=name, parent=parent, window_tokens=128, gkd_learning_rate=rate, **shared))
    demo = Setting(
        name="demo",
        parent=str(REPOSITORY / "recipes" / "demo-parent"),
        text="python",
        window_tokens=128,
        bld_tokens=16384,
        gkd_tokens=16384,
    )
    return [*found, demo]


def _told(setting: Setting) -> dict[str, Any]:
    """The setting without paths of this machine."""
    return asdict(setting) | {"parent": setting.name, "text": Path(setting.text).name}


if __name__ == "__main__":
    main()
