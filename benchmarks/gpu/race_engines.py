"""Our engines as contestants for race.py: in ONNX Runtime, in TensorRT-RTX and in TensorRT."""

import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorrt_gpu
from decoder_times import decode_s, prefill_s
from onnxruntime_cuda import SETTINGS, Opened
from race_players import Entry, Player, Text, prompts_of
from raced_models import most_tokens

from blockwright.compile.device_session import DeviceDecoder
from blockwright.compile.engine import EngineOrder, write_engine
from blockwright.compile.flavour import FlavourName
from blockwright.compile.generate import Writing
from blockwright.compile.providers import DeviceName, nodes_by_provider
from blockwright.compile.tensorrt_package import PackageName
from blockwright.compile.tensorrt_session import TensorRtDecoder
from blockwright.spec import parse_format


class EnginePlayer(Player):
    """Engines of both models, built and opened."""

    def __init__(self, entry: Entry, bytes_per_value: int) -> None:
        super().__init__(entry, bytes_per_value)
        self.facts: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            self._decoders = self.opened(Path(folder))
        self.stored = {name: decoder.engine.model for name, decoder in self._decoders.items()}
        self._started: dict[tuple[str, int, int], Writing] = {}

    @abstractmethod
    def opened(self, folder: Path) -> Mapping[str, Opened]:
        """Builds the engines in a folder, and opens them."""

    def logits(self, name: str, text: Text) -> np.ndarray:
        sequences = self._sequences(name, len(text.prompts[0]), len(text.prompts))
        found_SBV = [sequences.prefill(text.prompts).copy()]
        found_SBV += [sequences.step(np.array(ids_B)).copy() for ids_B in text.forced]
        return np.stack(found_SBV)

    def decode_s(self, name: str, context: int, batch: int) -> float:
        plan = self.entry.plan
        return decode_s(self._sequences(name, context, batch), prompts_of(plan, context, batch), plan.new_tokens)

    def prefill_s(self, name: str, tokens: int, batch: int) -> float:
        return prefill_s(self._sequences(name, tokens, batch), prompts_of(self.entry.plan, tokens, batch))

    def _sequences(self, name: str, tokens: int, batch: int) -> Writing:
        """Started once for each length and batch, and used again: logits are compared in those that are timed."""
        key = name, tokens, batch
        if key not in self._started:
            self._started[key] = self._decoders[name].start(batch, most_tokens(self.entry.plan, tokens))
        return self._started[key]


class OnnxRuntime(EnginePlayer):
    """A flavour in ONNX Runtime, on the device; its activations and caches are fp32."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry, bytes_per_value=4)

    def opened(self, folder: Path) -> Mapping[str, Opened]:
        decoders: dict[str, DeviceDecoder] = {}
        for name, model in self.models.items():
            order = EngineOrder(
                model=model,
                weights_format=parse_format(self.entry.format),
                num_positions=model.max_positions,
                session=SETTINGS,
                built_from="random weights",
                flavour=cast(FlavourName, self.entry.variant.split()[-1]),
            )
            (folder / name).mkdir()
            write_engine(order, self.weights[name], folder / name)
            decoders[name] = DeviceDecoder.open(folder / name, cast(DeviceName, self.entry.device))
        nodes = nodes_by_provider(decoders["parent"].session)
        self.facts["nodes"] = {provider: sum(taken.values()) for provider, taken in nodes.items()}
        return decoders


class TensorRt(EnginePlayer):
    """Plans of one of the packages, in fp16; their caches have room for the longest text, and all of it is read."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry, bytes_per_value=2)

    def opened(self, folder: Path) -> Mapping[str, Opened]:
        entry = self.entry
        assert entry.capability is not None, "it is not entered without a GPU"
        case = tensorrt_gpu.Case(
            package=cast(PackageName, entry.variant),
            format=entry.format,
            is_probe=False,
            is_small=entry.is_small,
            capability=entry.capability,
        )
        most = max(entry.batches)
        for name, model in self.models.items():
            self.facts[name] = tensorrt_gpu.build(model, self.weights[name], case, folder / name, most)
        return {name: TensorRtDecoder.open(folder / name) for name in self.models}


PLAYERS: dict[str, type[EnginePlayer]] = {"ONNX Runtime": OnnxRuntime, "TensorRT": TensorRt}
