from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "trtx.runtime.blocks",
    "trtx.runtime.prefix",
    "trtx.runtime.batch",
    "trtx.runtime.params",
    "trtx.runtime.request",
    "trtx.runtime.scheduler",
    "trtx.runtime.stops",
    "trtx.runtime.chat",
    "trtx.runtime.memory",
    "trtx.runtime.folders",
    "trtx.runtime.stats",
    "trtx.bench.stats",
    "trtx.bench.report",
)


def loaded_after(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_scheduling_memory_and_reports_need_no_torch() -> None:
    assert not loaded_after(*LIGHT) & {"torch", "numpy", "tokenizers", "transformers", "fastapi"}


def test_serving_an_engine_needs_neither_transformers_nor_modelopt() -> None:
    assert not loaded_after("trtx.serve.main") & {"transformers", "modelopt", "scipy"}
