"""Compiles several programs in one process, which saves its imports: `python compile_all.py job.json …`."""

from __future__ import annotations

import sys
from pathlib import Path

from trtx.backends.inductor.compile import compile_program
from trtx.backends.inductor.spec import CompileJob
from trtx.files import write_json

if __name__ == "__main__":
    for path in sys.argv[1:]:
        job = CompileJob.model_validate_json(Path(path).read_bytes())
        write_json(Path(job.facts), compile_program(job).model_dump(mode="json"))
