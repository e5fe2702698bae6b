"""Makes a step of Muon, and prints its peak as a share of what was predicted, for `test_memory.py`."""

import resource
from pathlib import Path

import torch

from blockwright.train.muon import Muon, workspace_bytes


def matrices(number: int, size: int) -> list[torch.nn.Parameter]:
    """Square ones with their gradients."""
    found = [torch.nn.Parameter(torch.ones(size, size)) for _ in range(number)]
    for matrix in found:
        matrix.grad = torch.ones(size, size)
    return found


if __name__ == "__main__":
    Muon(matrices(2, 32), lr=0.1).step()
    optimizer = Muon(matrices(400, 256), lr=0.1)
    before_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    optimizer.step()
    peak_bytes = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print((peak_bytes - before_bytes - 4 * 400 * 256**2) / workspace_bytes([(256, 256)] * 400))
