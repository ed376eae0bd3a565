"""A step that stands in for a real one: `slurm_worker.py job.json` does what job.json says and keeps count.

Each start and each finish appends a line to the file `record`, so that nothing can run twice unseen.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_bytes())
attempt = os.environ["TRTX_ATTEMPT"]
folder = Path("attempts", attempt)


def note(what: str) -> None:
    descriptor = os.open(job["record"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{job['step']} {what} {attempt}\n".encode())
    os.close(descriptor)


def leave(state: str, code: int) -> None:
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps({"step": job["step"], "attempt": int(attempt), "state": state}))
    temporary.replace(folder / "result.json")
    sys.exit(code)


def stop(*_: object) -> None:
    note("stopped")
    leave("failed", 130)


signal.signal(signal.SIGTERM, stop)
note("start")
print("works on", os.environ.get("SLURMD_NODENAME"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
held = [bytearray(b"x" * (1 << 20)) for _ in range(job.get("memory_mb", 0))]
# "wait": goes on when that file appears; "sleep": seconds by attempt, the last for all further ones.
while job.get("wait") and not Path(job["wait"]).exists():
    time.sleep(0.02)
times = job.get("sleep", [0])
time.sleep(times[min(int(attempt), len(times)) - 1])
if job.get("exit"):
    leave("failed", job["exit"])
note("finish")
leave("published", 0)
