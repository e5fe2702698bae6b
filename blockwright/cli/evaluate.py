"""Run tasks of lm-evaluation-harness on a parent or a child, also beside another one.

Tasks are the harness's own, by name: their data comes from its cache or from the Hugging Face hub. Or they are YAML
files of yours in the harness's form, with data of yours; these need no network (HF_HUB_OFFLINE=1 makes sure). The
harness runs Python functions that a task's YAML names.

A task of yours, pairs.yaml, with lines such as {"good": "A cat sits.", "bad": "A cat sit."} in pairs.jsonl:

  task: pairs
  dataset_path: json
  dataset_kwargs: {data_files: {test: pairs.jsonl}}     # from where you stand
  test_split: test
  output_type: multiple_choice
  doc_to_text: ""
  target_delimiter: ""                                  # or a space goes before each sentence
  doc_to_choice: "{{[good, bad]}}"
  doc_to_target: 0
  metric_list: [{metric: acc}]

Examples:
  blockwright evaluate child --tasks arc_easy,hellaswag --limit 500
  blockwright evaluate child --against PARENT --tasks pairs --task-dir tasks/ -o tasks.json
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's flags."""
    parser.add_argument("checkpoint", help="a parent's or a child's folder, or a repository of the Hugging Face hub")
    parser.add_argument("--against", metavar="PARENT", help="compare with this one, item by item")
    parser.add_argument("--tasks", required=True, metavar="TASK[,TASK…]", help="tasks, groups or tags, by name")
    parser.add_argument("--task-dir", type=Path, metavar="FOLDER", help="look for YAML files of tasks here first")
    parser.add_argument("--limit", type=int, metavar="N", help="each task's first items only (default: all)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-o", "--out", type=Path, help="write the JSON to this file too")


def run(arguments: argparse.Namespace) -> None:
    """Runs the sub-command."""
    from blockwright.errors import InputError
    from blockwright.pipeline.checks import check_at_least, check_distinct
    from blockwright.pipeline.evaluate import EvaluateOrder, evaluate
    from blockwright.pipeline.evaluate_table import print_evaluated

    tasks = tuple(name.strip() for name in arguments.tasks.split(",") if name.strip())
    if not tasks:
        raise InputError("--tasks", got=repr(arguments.tasks), expected="a task", remedy="Name one, such as arc_easy.")
    check_distinct("--tasks", tasks)
    check_at_least("--batch", arguments.batch, 1)
    if arguments.limit is not None:
        check_at_least("--limit", arguments.limit, 1)
    order = EvaluateOrder(tasks=tasks, task_folder=arguments.task_dir, limit=arguments.limit, batch=arguments.batch)
    evaluated = evaluate(arguments.checkpoint, arguments.against, order, arguments.out)
    print_evaluated(evaluated, as_json=arguments.json)
