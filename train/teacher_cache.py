"""What the parent says of each token, kept on disk: its likeliest k next tokens, and how much is left for all others.

Per token k token ids (int32) and logarithms of shares (fp16), and the logarithm of the rest (fp32): 6·k + 4 bytes.
Every window is kept once, however often the training passes through it. Files are mapped, not read; a filling that was
killed goes on behind the last whole group of windows. The index says of which parent, text and windows they are, and
nothing else is ever taken for them.

Shapes: B windows of a batch, T tokens, N = B·T, V vocabulary, K tokens kept.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.errors import InputError
from blockwright.files import read_json, write_json
from blockwright.model.walk import Walk
from blockwright.train.chunked_kl import CHUNK_TOKENS, TopK
from blockwright.train.windows import Batch

DEFAULT_K = 128
"""Minitron (arXiv 2408.11796) finds about 100 enough."""
_INDEX, _DONE = "index.json", "done.json"
_FILES = {"ids.bin": np.int32, "log_p.bin": np.float16, "log_tail.bin": np.float32}
_LEAST_LOG = -60000.0
"""Still finite in fp16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOrder:
    """What to keep."""

    k: int
    temperature: float
    origin: Mapping[str, str]
    """Digests of what the answers depend on: parent and text."""


class TeacherCache:
    """The answers for some windows, on disk.

    Args:
        folder: where the files are.
        order: what is kept.
        batches: all windows that will be asked for.
    """

    def __init__(self, folder: Path, order: CacheOrder, batches: Iterable[Batch]) -> None:
        self.folder, self.order = folder, order
        self._windows = {key: window for batch in batches for key, window in _windows_of(batch)}
        self._rows = {key: row for row, key in enumerate(self._windows)}
        self.num_windows = len(self._rows)
        self.window_tokens = len(next(iter(self._windows.values())).ids_BT[0])

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self.num_windows * self.window_tokens * (6 * self.order.k + 4)

    @property
    def num_done(self) -> int:
        """Windows that are kept already."""
        path = self.folder / _DONE
        return read_json(path)["windows"] if path.exists() else 0

    @property
    def is_full(self) -> bool:
        """Whether the parent need not be asked any more."""
        return self.num_done == self.num_windows

    def open(self) -> None:
        """Makes the files, or checks that those there are of the same parent, text and windows.

        Raises:
            InputError: they are not, or there is no room.
        """
        sha = hashlib.sha256()
        for key in self._rows:
            sha.update(key)
        wanted = {
            "k": self.order.k,
            "temperature": self.order.temperature,
            "window_tokens": self.window_tokens,
            "num_windows": self.num_windows,
            "windows": sha.hexdigest(),
            **self.order.origin,
        }
        index = self.folder / _INDEX
        if index.exists():
            found = read_json(index)
            different = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            if different:
                raise self._refused(f"answers that differ in {', '.join(different)}")
            for name in _FILES:
                file = self.folder / name
                if not file.exists() or file.stat().st_size != self._shape_bytes(name):
                    raise self._refused(f"a {name} that was cut short")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < self.num_bytes:
            raise InputError(
                "--teacher-logits cached",
                got=f"{free / 1e9:.1f} GB free in {self.folder}",
                expected=f"room for {self.num_bytes / 1e9:.1f} GB: {6 * self.order.k + 4} bytes for each token",
                remedy="Keep fewer tokens of each answer (--top-k), take less text, or let the parent run live.",
            )
        for name in _FILES:
            with (self.folder / name).open("wb") as file:
                file.truncate(self._shape_bytes(name))
        write_json(index, wanted)

    def fill(self, parent: PreTrainedModel, batch_windows: int, on_windows: Callable[[int], None]) -> None:
        """Asks the parent of all windows that are not kept yet; `on_windows` is told how many are.

        Raises:
            InputError: the vocabulary has fewer tokens than are to be kept.
        """
        if self.order.k > parent.config.vocab_size:
            raise InputError(
                "--top-k",
                got=self.order.k,
                expected=f"at most the vocabulary of {parent.config.vocab_size}",
                remedy="Keep fewer tokens.",
            )
        windows = list(self._windows.values())
        files = {name: self._map(name, "r+") for name in _FILES}
        for start in range(self.num_done, len(windows), batch_windows):
            some = windows[start : start + batch_windows]
            segments = [window.segments_BT for window in some if window.segments_BT is not None]
            batch = Batch(
                ids_BT=torch.cat([window.ids_BT for window in some]).to(parent.device),
                segments_BT=torch.cat(segments).to(parent.device) if segments else None,
            )
            top = ask(parent, batch, self.order)
            rows = slice(start, start + len(some))
            for name, values in zip(
                _FILES, (top.ids_NK, top.log_p_NK.clamp(min=_LEAST_LOG), top.log_tail_N), strict=True
            ):
                files[name][rows] = values.cpu().numpy().reshape(files[name][rows].shape)
                files[name].flush()
            write_json(self.folder / _DONE, {"windows": start + len(some)})
            on_windows(start + len(some))

    def has(self, batch: Batch) -> bool:
        """Whether these windows are among its own."""
        return all(key in self._rows for key, _ in _windows_of(batch))

    def top_of(self, batch: Batch) -> TopK:
        """What the parent says of some of the windows, on their device; shares are made to sum to 1 again."""
        rows = [self._rows[key] for key, _ in _windows_of(batch)]
        ids_NK, log_p_NK, log_tail_N = (
            torch.from_numpy(self._map(name, "r")[rows]).to(batch.ids_BT.device).flatten(0, 1) for name in _FILES
        )
        log_NK = torch.cat([log_p_NK.float(), log_tail_N[:, None]], dim=1)
        log_NK = log_NK.log_softmax(dim=1)
        return TopK(ids_NK=ids_NK, log_p_NK=log_NK[:, :-1], log_tail_N=log_NK[:, -1])

    def _shape(self, name: str) -> tuple[int, ...]:
        tail = () if name == "log_tail.bin" else (self.order.k,)
        return (self.num_windows, self.window_tokens, *tail)

    def _shape_bytes(self, name: str) -> int:
        return int(np.prod(self._shape(name))) * np.dtype(_FILES[name]).itemsize

    def _map(self, name: str, mode: str) -> np.memmap:
        return np.memmap(self.folder / name, dtype=_FILES[name], mode=mode, shape=self._shape(name))  # pyright: ignore

    def _refused(self, got: str) -> InputError:
        return InputError(
            str(self.folder),
            got=got,
            expected="the answers of this parent on these windows",
            remedy="Name another folder, or delete this one: it is filled anew.",
        )


@torch.no_grad()
def ask(parent: PreTrainedModel, batch: Batch, order: CacheOrder) -> TopK:
    """The parent's likeliest next tokens after each token of some windows."""
    walk = Walk(parent, batch.segments_BT)
    y_BTD = walk.embed(batch.ids_BT)
    for layer in range(len(walk.layers)):
        y_BTD = walk.layer(layer, y_BTD)
    tops: list[tuple[Tensor, Tensor, Tensor]] = []
    for y_CD in y_BTD.flatten(0, 1).split(CHUNK_TOKENS):
        log_p_CV = (walk.logits(y_CD) / order.temperature).log_softmax(dim=-1, dtype=torch.float32)
        log_p_CK, ids_CK = log_p_CV.topk(order.k)
        tops.append((ids_CK, log_p_CK, log_p_CV.scatter_(1, ids_CK, -torch.inf).logsumexp(dim=-1)))
    ids_NK, log_p_NK, log_tail_N = (torch.cat(each) for each in zip(*tops, strict=True))
    return TopK(ids_NK=ids_NK, log_p_NK=log_p_NK, log_tail_N=log_tail_N)


def _windows_of(batch: Batch) -> Iterable[tuple[bytes, Batch]]:
    """Each window with a key that tells it from all others."""
    for row in range(len(batch.ids_BT)):
        ids_BT = batch.ids_BT[row : row + 1]
        segments_BT = None if batch.segments_BT is None else batch.segments_BT[row : row + 1]
        parts = [ids_BT] if segments_BT is None else [ids_BT, segments_BT]
        key = hashlib.sha256(b"|".join(part.cpu().numpy().astype(np.int64).tobytes() for part in parts)).digest()
        yield key, Batch(ids_BT=ids_BT, segments_BT=segments_BT)
