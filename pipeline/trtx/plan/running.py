"""Has the cache know, while a run is under way, that it needs every entry of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trtx.cache.runs import end_run, note_run
from trtx.cache.store import Store
from trtx.plan.record import ORDER_NAME, SETTLED_NAME, RunRecord
from trtx.plan.steps import Plan


@contextmanager
def noted_run(store: Store, plan: Plan, record: RunRecord) -> Iterator[None]:
    """Keep a note of the run in the cache; it stays when jobs on a cluster go on afterwards."""
    # A simulated cluster's jobs end with this process.
    clusters = [record.submission_folder(name) for name, found in plan.runners.items() if found["type"] != "sim"]
    jobs = [(folder / ORDER_NAME, folder / SETTLED_NAME) for folder in clusters]
    note_run(store.root, record.folder, (step.key for step in plan.steps), jobs)
    try:
        yield
    finally:
        end_run(store.root, record.folder)
