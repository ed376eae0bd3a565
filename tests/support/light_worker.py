"""The real worker with stages that do nothing but keep count: `python -m support.light_worker job.json`.

The folder that LIGHT_STEPS names says what else a step does, by files: `hold/<step>`: it waits until that file is gone;
`fail/<step>`: it fails; `eat/<step>`: it takes so many MiB of memory; `sleep`: all take so many seconds. Slashes in
step names are dots there. Each start and each finish is a line of `record`.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trtx.errors import StepFailed
from trtx.stages import worker
from trtx.stages.base import StepContext

TESTS = Path(__file__).parents[1]


class LightSteps:
    """The folder from the side of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("hold", "fail", "eat"):
            (folder / name).mkdir(parents=True)
        self.python = folder / "python"
        self.python.write_text(
            f'#!/bin/sh\nif [ "$2" = trtx.stages.worker ]; then\n'
            f'  exec {sys.executable} -m support.light_worker "$3"\nfi\nexec {sys.executable} "$@"\n'
        )
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self) -> Mapping[str, str]:
        """What jobs need to find the stand-ins."""
        return {"LIGHT_STEPS": str(self.folder), "PYTHONPATH": str(TESTS)}

    def counts(self) -> Counter[str]:
        """How often what was written: "build/h100/fp32 start", "build/h100/fp32 finish"."""
        path = self.folder / "record"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def hold(self, step: str) -> Path:
        """Have a step wait until the file is removed."""
        path = self.folder / "hold" / step.replace("/", ".")
        path.touch()
        return path

    def release(self) -> None:
        """Have no step wait any more."""
        for path in (self.folder / "hold").iterdir():
            path.unlink()

    def fail(self, step: str) -> Path:
        path = self.folder / "fail" / step.replace("/", ".")
        path.touch()
        return path

    def sleep(self, seconds: float) -> None:
        """Have every step take so long."""
        (self.folder / "sleep").write_text(str(seconds))

    def eat(self, step: str, mebibytes: int) -> None:
        """Have a step take memory."""
        (self.folder / "eat" / step.replace("/", ".")).write_text(str(mebibytes))


def note(folder: Path, what: str) -> None:
    descriptor = os.open(folder / "record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{what}\n".encode())
    os.close(descriptor)


def run_stage(step: str, context: StepContext) -> dict[str, Any]:
    folder, name = Path(os.environ["LIGHT_STEPS"]), step.replace("/", ".")
    note(folder, f"{step} start")
    print(f"{step} begins", flush=True)
    eaten = folder / "eat" / name
    held = [bytearray(b"x" * (1 << 20)) for _ in range(int(eaten.read_text()) if eaten.exists() else 0)]
    if (folder / "sleep").exists():
        time.sleep(float((folder / "sleep").read_text()))
    while (folder / "hold" / name).exists():
        time.sleep(0.02)
    if (folder / "fail" / name).exists():
        raise StepFailed("it was asked to fail", fix="ask for something else")
    del held
    (context.output / "output.txt").write_text(f"made of {sorted(context.keys.values())}")
    note(folder, f"{step} finish")
    return {"choices": {}}


def main() -> int:
    step = json.loads(Path(sys.argv[1]).read_bytes())["step"]
    stage = SimpleNamespace(run=lambda _params, context: run_stage(step, context))
    worker.load_stage = lambda _name: stage  # type: ignore[assignment,return-value]
    return worker.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
