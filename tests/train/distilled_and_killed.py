"""One distillation left alone, and one killed again and again, as `test_killed.py` starts them.

Each is a process forked from this one, which has done no backward pass: torch allows none after a fork otherwise.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from distilled_by_ranks import pair, shards
from safetensors import safe_open
from safetensors.torch import save_file

from blockwright.train.distill import GkdSettings, distill
from blockwright.train.ranks import Ranks

NUM_STEPS, KILLS = 60, 4
SETTINGS = GkdSettings(learning_rate=3e-3, checkpoint_steps=2, eval_steps=3)
MOST_DELAY_S = 0.05
"""Some steps, of a few milliseconds each; a state is kept every other one."""
STEPS_TO_A_KILL = 10
"""A process that is to be killed waits for it after so many, so that all kills come before the end on any machine."""


def start(folder: Path, most_steps: int = NUM_STEPS + 1) -> int:
    """Starts a process that distils, or goes on with it; writes what it ends with, where it may make so many steps."""
    if pid := os.fork():
        return pid
    child, parent = pair()
    batches, held_out = (shards(seed, num_batches, Ranks.alone()) for seed, num_batches in ((5, NUM_STEPS), (6, 1)))
    made = itertools.count(1)

    def wait_at_the_last(_: object) -> None:
        if next(made) == most_steps:
            signal.pause()

    state = folder / "state.safetensors"
    history = distill(child, parent, batches, SETTINGS, state, held_out=held_out, on_step=wait_at_the_last)
    save_file(child.state_dict(), folder / "child.safetensors")
    (folder / "history.json").write_text(json.dumps([asdict(step) for step in history]))
    os._exit(0)


def kill_later(pid: int, state: Path) -> int:
    """Kills the process some time after it has kept a further state; says how many steps are in the last one."""
    before = steps_in(state)
    while steps_in(state) == before:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it kept a state"
        time.sleep(0.001)
    time.sleep(random.uniform(0, MOST_DELAY_S))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"
    return steps_in(state)


def steps_in(state: Path) -> int:
    """How many steps the state that was kept has made."""
    if not state.exists():
        return 0
    with safe_open(state, framework="pt") as opened:
        return len(json.loads(opened.metadata()["data"]))


if __name__ == "__main__":
    whole, killed = (Path(sys.argv[1]) / name for name in ("whole", "killed"))
    for folder in (whole, killed):
        folder.mkdir()
    random.seed(0)
    kills = [kill_later(start(killed, STEPS_TO_A_KILL), killed / "state.safetensors") for _ in range(KILLS)]
    for folder in (whole, killed):
        _, status = os.waitpid(start(folder), 0)
        assert status == 0
    (killed / "kills.json").write_text(json.dumps(kills))
