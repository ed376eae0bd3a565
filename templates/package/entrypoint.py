"""Starts this deployment: checks its files and this machine, then becomes `trtx serve`.

    python entrypoint.py [options of trtx serve]
    TRTX_SERVER=triton python entrypoint.py [options of tritonserver]

TRTX_VERIFY chooses which files are compared with SHA256SUMS first: `all` (default), or `code` for everything but
the weights, whose many gigabytes take their time. Exit codes: 2 usage, 6 this machine does not fit, 8 a file is not
what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCOPES = ("all", "code")
SERVERS = ("trtx", "triton")
TRITON = "/opt/tritonserver/bin/tritonserver"
EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_VERIFICATION = 2, 6, 8


class Refusal(Exception):
    """Why the server is not started."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def verify_files(scope: str) -> None:
    """Compare the files of the engine with SHA256SUMS."""
    if scope not in SCOPES:
        raise Refusal(EXIT_USAGE, f"TRTX_VERIFY is {scope!r}; it must be one of {', '.join(SCOPES)}")
    for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if not name.startswith("engine/") or (scope == "code" and name.startswith("engine/weights/rank")):
            continue
        try:
            with (HERE / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise Refusal(EXIT_VERIFICATION, f"cannot read {name}: {error.strerror}; copy the folder again") from error
        if found != expected:
            raise Refusal(EXIT_VERIFICATION, f"{name} is not the file that was packaged; copy the folder again")


def check_machine() -> None:
    """Refuse a machine that the engine was not compiled for."""
    try:
        from trtx.errors import TrtxError
        from trtx.runtime.card import load_card
        from trtx.runtime.fit import check_machine
    except ImportError as error:
        raise Refusal(
            EXIT_ENVIRONMENT,
            f"this Python has no {error.name}; run: pip install --no-deps -r requirements.txt wheels/*.whl",
        ) from error
    try:
        check_machine(load_card(HERE / "engine"))
    except TrtxError as error:
        raise Refusal(error.exit_code, error.render().removeprefix("error: ")) from error


def serve_arguments(extra: list[str]) -> list[str]:
    """The command line of the server; later options win over earlier ones."""
    settings = json.loads((HERE / "deployment.json").read_bytes())
    return [sys.executable, "-m", "trtx.cli", "serve", str(HERE / "engine"), *settings["serve"], *extra]


def triton_arguments(extra: list[str]) -> list[str]:
    """The command line of Triton Inference Server with this deployment's model."""
    server = shutil.which("tritonserver") or TRITON
    return [server, f"--model-repository={HERE / 'triton-server' / 'models'}", "--disable-auto-complete-config", *extra]


def choose_arguments(server: str, extra: list[str]) -> list[str]:
    """The command line of the server that TRTX_SERVER names."""
    if server not in SERVERS:
        raise Refusal(EXIT_USAGE, f"TRTX_SERVER is {server!r}; it must be one of {', '.join(SERVERS)}")
    if server == "trtx":
        return serve_arguments(extra)
    if not (HERE / "triton-server").is_dir():
        raise Refusal(EXIT_USAGE, "this deployment has no model for Triton; add triton to package.emit")
    return triton_arguments(extra)


def main() -> None:
    """Replace this process with the server, or say why not and exit."""
    try:
        command = choose_arguments(os.environ.get("TRTX_SERVER", "trtx"), sys.argv[1:])
        verify_files(os.environ.get("TRTX_VERIFY", "all"))
        check_machine()
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(refusal.exit_code)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
