"""What a stage is: a function of parameters and input folders that fills one output folder. Imports no torch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from trtx.files import write_json

# Stage name → the module with its `run`.
STAGES = {
    "download": "trtx.stages.download",
    "dataset": "trtx.stages.dataset",
    "calibrate": "trtx.stages.calibrate",
    "convert": "trtx.stages.convert",
    "build": "trtx.stages.build",
    "benchmark": "trtx.stages.benchmark",
    "package": "trtx.stages.package",
}

# The same of other backends, by backend/stage; these modules import nothing that TensorRT-LLM's containers lack.
BACKEND_STAGES = {
    "tensorrt-llm/calibrate": "trtx.stages.trtllm_calibrate",
    "tensorrt-llm/convert": "trtx.stages.trtllm_convert",
    "tensorrt-llm/build": "trtx.stages.trtllm_build",
    "tensorrt-llm/benchmark": "trtx.stages.trtllm_benchmark",
    "tensorrt-llm/package": "trtx.stages.trtllm_package",
}

# Progress is a file, written at most this often, so that the driver and `trtx status` can read it from any host.
PROGRESS_INTERVAL_S = 0.5


@dataclass
class StepContext:
    """What a running step sees.

    `inputs` are read-only folders by name; `output` is an empty folder to fill; `work` is scratch space that is
    deleted afterwards; `keys` are the inputs' keys (for evidence, not for decisions that change bytes); `choices` are
    what an earlier run of the same key measured. Of a step of several processes each runs the stage, with its `rank` of
    `ranks`: they share `output`, and have their own `work`.
    """

    inputs: Mapping[str, Path]
    output: Path
    work: Path
    keys: Mapping[str, str] = field(default_factory=dict)
    progress_file: Path | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 0
    ranks: int = 1
    _last_progress: float = 0.0

    def say(self, text: str) -> None:
        """One line for the step's log."""
        print(text, flush=True)

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the step is; cheap to call often."""
        now = time.monotonic()
        if self.progress_file is None or (now - self._last_progress < PROGRESS_INTERVAL_S and done < total):
            return
        self._last_progress = now
        write_json(self.progress_file, {"done": done, "total": total, "unit": unit, "time": time.time()})


class Stage(Protocol):
    """Interface of a stage module. Its parameters and its code version stand in trtx.stages.params."""

    def run(self, params: Any, context: StepContext) -> dict[str, Any]:
        """Fill `context.output`; the returned summary (small JSON) goes into the manifest and the report.

        Raises TrtxError for a failure with a known cause.
        """
        ...


def load_stage(name: str) -> Stage:
    """Import a stage's module, by its name or by backend/name."""
    return cast(Stage, importlib.import_module((STAGES | BACKEND_STAGES)[name]))
