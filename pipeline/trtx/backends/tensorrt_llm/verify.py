"""Whether an engine of TensorRT-LLM is whole, and whether it runs in the container or on the machine that asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.card import TrtllmCard, load_card, same_tensorrt
from trtx.backends.tensorrt_llm.drift import EngineConfig, read_engine_config
from trtx.backends.tensorrt_llm.llm_options import FILE_NAME
from trtx.backends.tensorrt_llm.machine import Installed
from trtx.backends.tensorrt_llm.names import CARD_NAME
from trtx.errors import VerificationFailed

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class Found:
    """What an engine folder says of itself; `card` is None for one that trtx did not make, `config` without engine."""

    card: TrtllmCard | None
    config: EngineConfig | None

    @property
    def release(self) -> str:
        if self.card is not None:
            return self.card.tensorrt_llm
        return self.config.version if self.config is not None else ""

    @property
    def world_size(self) -> int:
        if self.card is not None:
            return self.card.world_size
        mapping = (self.config.pretrained.get("mapping") if self.config is not None else None) or {}
        return int(mapping.get("world_size", 1))


def is_engine(folder: Path) -> bool:
    """Whether a folder holds an engine of TensorRT-LLM, or the options file of its PyTorch flow."""
    if (folder / CARD_NAME).is_file():
        return True
    try:
        read_engine_config(folder)
    except VerificationFailed:
        return False
    return True


def read_engine(folder: Path) -> Found:
    """Raises VerificationFailed for a folder that is none."""
    card = load_card(folder) if (folder / CARD_NAME).is_file() else None
    return Found(card, None if card is not None and card.flow == "pytorch" else read_engine_config(folder))


def find_faults(folder: Path, found: Found) -> Iterator[str]:
    """What is missing of an engine, or contradicts itself."""
    if found.config is None:
        if not (folder / FILE_NAME).is_file():
            yield f"{FILE_NAME} is missing"
        return
    for rank in range(found.world_size):
        if not (folder / f"rank{rank}.engine").is_file():
            yield f"rank{rank}.engine is missing, and there are {found.world_size} ranks"
    if found.config.version != found.release:
        yield f"{CARD_NAME} is of TensorRT-LLM {found.release}, and {CONFIG_NAME} of {found.config.version}"


def find_misfits(found: Found, here: Installed, *, strict: bool) -> Iterator[str]:
    """Why an engine does not run here, one sentence each. `strict` asks for the model of GPU it was built on, too."""
    card = found.card
    if here.library is None:
        yield f"it is of TensorRT-LLM {found.release}, which is not installed here"
    elif here.library.partition("+")[0] != found.release:
        yield f"it is of TensorRT-LLM {found.release}, and {here.library} is installed here"
    if card is not None and card.tensorrt and here.tensorrt and not same_tensorrt(card.tensorrt, here.tensorrt):
        yield f"it was built with TensorRT {card.tensorrt}, and {here.tensorrt} is installed here"
    if here.host.gpus_problem:
        yield f"the GPUs cannot be listed: {here.host.gpus_problem}"
    elif len(here.gpus) < found.world_size:
        yield f"it needs {found.world_size} GPU(s), and {len(here.gpus)} are visible here"
    if card is None or card.compute_capability is None:
        return
    arch = f"sm_{card.compute_capability.replace('.', '')}"
    for name in sorted({gpu.name for gpu in here.gpus if gpu.arch != arch}):
        yield f"it was built for compute capability {card.compute_capability} ({card.gpu}), which {name} does not have"
    if strict and card.gpu is not None:
        for name in sorted({gpu.name for gpu in here.gpus if gpu.arch == arch and gpu.name != card.gpu}):
            yield f"it was built on {card.gpu}, and {name} is here"
