"""Runs a build step once more beside its entry, and compares: `python -m trtx.stages.rebuild job.json`.

The job is the step's own. Its output and what came of it go into the job's folder, and nothing into the cache. The exit
code is 0 when there is a report, whatever it says.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from trtx.backends.rebuilt import Comparison
from trtx.cache.store import Store
from trtx.errors import TrtxError, UsageProblem, VerificationFailed
from trtx.files import disk_errors, write_text
from trtx.stages.base import StepContext
from trtx.stages.job import Failure, Job, dump_file
from trtx.stages.rebuild_report import REPORT_NAME, Report
from trtx.stages.toolchain import check_toolchain
from trtx.stages.worker import describe_unexpected, follow_parent, open_input, read_job, run_stage


def main(arguments: list[str]) -> int:
    """Rebuild the step of the job named by the one argument."""
    if len(arguments) != 1:
        print("usage: python -m trtx.stages.rebuild job.json", file=sys.stderr)
        return UsageProblem.exit_code
    follow_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    path = Path(arguments[0]).absolute()
    try:
        job = read_job(path)
        write_text(path.parent / REPORT_NAME, dump_file(rebuild(job, path.parent)))
    except TrtxError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


def rebuild(job: Job, folder: Path) -> Report:
    """Run the job's stage into `folder` and compare with the entry; a failure is part of the report."""
    started = time.monotonic()
    try:
        store = Store(Path(job.cache_dir))
        entry = _open_entry(store, job)
        check_toolchain(job.step, job.factors)
        context = _make_context(store, job, folder)
        run_stage(job, context)
        seconds = round(time.monotonic() - started, 3)
        comparison = compare(job, entry, context)
    except TrtxError as error:
        print(error.render(), file=sys.stderr, flush=True)
        return Report(step=job.step, key=job.key, failure=Failure.of(error))
    except Exception as error:  # noqa: BLE001  As in the worker: every end has a report.
        traceback.print_exc()
        return Report(step=job.step, key=job.key, failure=Failure.of(describe_unexpected(error)))
    return Report(step=job.step, key=job.key, comparison=comparison, seconds=seconds)


def compare(job: Job, entry: Path, context: StepContext) -> Comparison:
    """Compare an entry's folder with what a context's step has written, as the job's backend does."""
    if job.params.get("backend") == "tensorrt-llm":
        from trtx.backends.tensorrt_llm.rebuild import compare as compare_trtllm

        return compare_trtllm(entry, context.output)
    from trtx.backends.inductor.rebuild import compare as compare_inductor

    return compare_inductor(entry, context.output, context.inputs, context.work / "answers")


def _open_entry(store: Store, job: Job) -> Path:
    found = store.find(job.key)
    if found.manifest is None:
        raise VerificationFailed(
            f"{job.step} cannot be compared with its entry",
            why=found.fault or f"there is no entry {job.key} in the cache",
            fix="run `trtx apply` again: it makes the entry anew",
        )
    return store.output(job.key)


def _make_context(store: Store, job: Job, folder: Path) -> StepContext:
    context = StepContext(
        inputs={name: open_input(store, job, name) for name in job.inputs},
        output=folder / "output",
        work=folder / "work",
        keys={name: entry.key for name, entry in job.inputs.items()},
        choices=job.choices,
    )
    for made in (context.output, context.work):
        with disk_errors(made):
            made.mkdir()
    return context


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # So that no compiler outlives it.


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
