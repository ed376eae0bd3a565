"""Keeps what a failed step leaves behind, so that it can be looked at and run again: failures/… of the cache.

    result.json   how it failed          error.txt  the traceback        job.json.in  the job, for repro.sh
    log.txt       the end of its log     repro.sh   runs it again        partial/     what it had written, if small

Secrets stay out: repro.sh holds values only of variables that are known to be harmless and the names of all others,
and the values of variables that look like secrets are struck from texts.
"""

from __future__ import annotations

import re
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from trtx.cache.failures import folder_bytes, open_failure, trim_failures
from trtx.cache.store import Store
from trtx.errors import TrtxError
from trtx.files import write_json
from trtx.stages.job import (
    ATTEMPT_VARIABLE,
    PARENT_VARIABLE,
    RANK_VARIABLE,
    RANKS_VARIABLE,
    Failure,
    Job,
    dump_file,
)

LOG_NAME = "log.txt"
LOG_TAIL_BYTES = 64 << 10
# Larger partial outputs are weights and engines, which tell nothing that the log does not.
MAX_PARTIAL_BYTES = 4 << 20
# Variables whose values are written down. All others are passed on by name, from wherever repro.sh is run.
SAFE_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
        "HOME",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "PATH",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TOKENIZERS_PARALLELISM",
        "TRANSFORMERS_OFFLINE",
        "TRTX_OFFLINE",
        "TRTX_TRTLLM_ROOT",
        "TZ",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
    }
)
# Set by a runner for one attempt; they mean nothing in another.
ATTEMPT_ONLY = frozenset({ATTEMPT_VARIABLE, PARENT_VARIABLE, RANK_VARIABLE, RANKS_VARIABLE})
SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|PROXY|COOKIE|WEBHOOK|DSN|_PWD$|(^|_)(PAT|PEM)(_|$)", re.IGNORECASE
)
# As in postgres://user:password@host.
SECRET_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
# Shorter ones are too common in other words.
MIN_SECRET = 6
# What repro.sh does with the job: the cache is one in the scratch folder.
MOVE_JOB = (
    "import json, sys; job = json.load(open(sys.argv[1])); job['cache_dir'] = sys.argv[2] + '/cache'; "
    "json.dump(job, open(sys.argv[2] + '/job.json', 'w'))"
)
SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Evidence:
    """Collects the evidence of one attempt at a job. Keeping it is best effort: it never makes a failure worse."""

    def __init__(self, job: Job, attempt: Path, environ: Mapping[str, str]) -> None:
        self._job, self._attempt = job, attempt
        self._environ = {name: value for name, value in environ.items() if name not in ATTEMPT_ONLY}
        self._root = Path(job.cache_dir)
        self._folder: Path | None = None

    @contextmanager
    def of_staging(self, staged: Path) -> Iterator[None]:
        """Keep a small partial output when the step inside fails; one that is stopped leaves nothing."""
        try:
            yield
        except Exception:
            with suppress(OSError):
                self._take(staged)
            raise

    def _take(self, staged: Path) -> None:
        written = folder_bytes(staged / "output") + folder_bytes(staged / "work")
        if not 0 < written <= MAX_PARTIAL_BYTES:
            return
        partial = self._open() / "partial"
        partial.mkdir()
        for name in ("output", "work"):
            if (staged / name).is_dir():
                (staged / name).rename(partial / name)

    def _open(self) -> Path:
        if self._folder is None:
            self._folder = open_failure(self._root, self._job.key)
        return self._folder

    def keep(self, failure: Failure, cause: BaseException) -> Path | None:
        """Write everything down; returns the folder, or None when it could not be made."""
        try:
            folder = self._open()
            log = self._read_log()
            if log is not None:
                (folder / LOG_NAME).write_text(self._without_secrets(log))
            text = "".join(traceback.format_exception(cause))
            (folder / "error.txt").write_text(self._without_secrets(text))
            (folder / "job.json.in").write_text(dump_file(self._job))
            (folder / "repro.sh").write_text(make_repro(self._job, self._environ))
            (folder / "repro.sh").chmod(0o755)
            told = {name: self._without_secrets(value) for name, value in failure.model_dump().items()}
            write_json(folder / "result.json", {"key": self._job.key, "step": self._job.step, "failure": told})
            trim_failures(self._root)
        except (OSError, TrtxError):
            return None
        return folder

    def _read_log(self) -> str | None:
        """The last part of the log that the runner writes beside the result; there is none when run by hand."""
        try:
            with (self._attempt / LOG_NAME).open("rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(max(0, size - LOG_TAIL_BYTES))
                return stream.read().decode(errors="replace")
        except OSError:
            return None

    def _without_secrets(self, text: str) -> str:
        for name, value in self._environ.items():
            if name in SAFE_VARIABLES or not SECRET_NAME.search(name):
                continue
            for part in (value, *value.splitlines()):  # Of a key in PEM, logs may show single lines.
                if len(part) >= MIN_SECRET:
                    text = text.replace(part, f"[{name}]")
        return SECRET_IN_URL.sub("[credentials]", text)


def make_repro(job: Job, environ: Mapping[str, str]) -> str:
    """A POSIX shell script that runs a job as it was run, into a scratch cache that borrows the job's inputs.

    Its one optional argument is the scratch folder.
    """
    safe = [f"{name}={value}" for name, value in sorted(environ.items()) if name in SAFE_VARIABLES]
    other = [name for name in sorted(environ) if name not in SAFE_VARIABLES and SHELL_NAME.fullmatch(name)]
    store, lines = Store(Path(job.cache_dir)), []
    for entry in job.inputs.values():
        place = f'"$scratch/cache/entries/{entry.key[:2]}'
        lines += [f'mkdir -p {place}"', f'ln -sfn {shlex.quote(str(store.entry(entry.key)))} {place}/{entry.key}"']
    # ${X+…} is nothing where X is not set, else one word.
    python = shlex.quote(sys.executable)
    words = [*map(shlex.quote, safe), *(f'${{{name}+"{name}=${name}"}}' for name in other), python]
    environment = " \\\n  ".join(words)
    passed = " ".join(other) or "(none)"
    return f"""#!/bin/sh
# Runs again what failed: {job.step!r} of the recipe {job.recipe!r}
# key {job.key}
# on {socket.gethostname()}, {time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
#
# Works in a scratch folder (the argument, else a new one); of the cache it only reads the inputs.
# Passed on from where you run this, because their values are not written down: {passed}
set -eu
here=$(cd "$(dirname "$0")" && pwd)
scratch=${{1:-$(mktemp -d)}}
mkdir -p "$scratch"
scratch=$(cd "$scratch" && pwd)
{chr(10).join(lines)}
{python} -c {shlex.quote(MOVE_JOB)} "$here/job.json.in" "$scratch"
cd "$scratch"
echo "in $scratch" >&2
exec env -i \\
  {environment} -m trtx.stages.worker "$scratch/job.json"
"""
