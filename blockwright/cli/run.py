"""Run all stages of a recipe: from a parent to a measured, compiled child.

Reads a recipe; writes a folder with everything that was made: the profile of this machine, the block library, scores,
the plan, the child before (realised/) and after distillation (child/), the engines, what was measured, and
report.html. Ends with a table. Kill it anywhere and run it again: it goes on from the last finished piece.

  blockwright run recipes/demo.yaml
  blockwright run recipes/demo.yaml --parent path/to/checkpoint --text texts/
  blockwright run recipes/demo.yaml --budget 'time_per_token@chat <= 40%'
"""

import argparse
from dataclasses import replace
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("recipe", type=Path, help="a YAML file such as recipes/demo.yaml")
    parser.add_argument("-o", "--out", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument("--parent", help="takes the place of the recipe's parent")
    parser.add_argument("--text", help="takes the place of the recipe's text")
    parser.add_argument("--budget", action="append", help="takes the place of the recipe's budgets; repeatable")
    parser.add_argument("--profile", help="a ready profile of this machine, instead of measuring one")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.pipeline.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, parent=arguments.parent, text=arguments.text)
    if arguments.budget:
        recipe = replace(recipe, budgets=tuple(arguments.budget))
    name = recipe.name if arguments.parent is None else f"{recipe.name}-{Path(arguments.parent).name}"

    from blockwright.pipeline.run import run as run_recipe
    from blockwright.pipeline.tables import print_run, run_to_data

    result = run_recipe(recipe, arguments.out or Path("runs") / name, arguments.profile)
    if arguments.json:
        import json

        print(json.dumps(run_to_data(result.folder, result.plan, result.measured), indent=1))
    else:
        print_run(result.folder, result.plan, result.measured, arguments.profile)
