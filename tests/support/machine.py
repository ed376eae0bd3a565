"""A machine with a cache of its own that makes a plan's steps, in a process of its own.

    python machine.py FOLDER REMOTES COUNTS [DELAY_S]

The real executor, worker, store and remotes; only the stages are replaced: each appends its name to COUNTS, waits and
writes a file. Prints the state and the reason of every step as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.plans import plan_of
from support.steps import InlineRunner, Watcher

from trtx.cache.store import Store
from trtx.plan import exchange
from trtx.plan.execute import Execution
from trtx.plan.record import create_run
from trtx.plan.remotes import open_remotes
from trtx.plan.survey import survey
from trtx.stages import worker
from trtx.stages.base import StepContext


def main(folder: Path, remotes: str, counts: Path, delay_s: float) -> None:
    def load_stage(name: str) -> Any:
        def run(_params: Any, context: StepContext) -> dict[str, Any]:
            with counts.open("a") as stream:
                stream.write(f"{name} {sorted(context.keys.values())}\n")
            time.sleep(delay_s)
            (context.output / "output.txt").write_text(f"made of {sorted(context.keys.values())}")
            return {}

        return SimpleNamespace(run=run)

    worker.load_stage = load_stage  # type: ignore[assignment]
    exchange.MIN_POLL_S = 0.1
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_of(folder, select="cpu/fp32")
    store = Store(Path(plan.cache_dir))
    store.prepare()
    found = open_remotes({**os.environ, "TRTX_CACHE_REMOTES": remotes})
    execution = Execution(plan, store, InlineRunner(max_parallel=1), create_run(folder, plan), {}, Watcher())
    execution.remotes = found
    execution.run(survey(plan, store, None, found))
    rows = {step: [status.state.value, status.reason] for step, status in execution.statuses.items()}
    print(json.dumps({"steps": rows, "warnings": execution.warnings}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
