"""Servers and steps to predict."""

from dataclasses import replace

from blockwright.hw_profiles.datasheet_figures import datasheet_ceilings
from blockwright.llama import LLAMA_8B
from blockwright.profiler.serving import Server
from blockwright.profiler.serving_runtimes import RUNTIMES

WEIGHTS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256
BARE = replace(RUNTIMES["graph-server"], name="bare", step_s=0.0, sequence_s=0.0)
H100 = datasheet_ceilings("h100_sxm")


def server(**changes) -> Server:
    return replace(Server(model=LLAMA_8B, ceilings=H100, runtime=RUNTIMES["graph-server"]), **changes)
