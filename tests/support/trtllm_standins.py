"""Stand-ins for the programs of a TensorRT-LLM container. They compute nothing, and say so wherever they can.

`install` lays out a folder as a container has it: console commands, scripts of the repository, metadata of the
distributions, nvidia-smi. Each program reads exactly the command line that the shipped table of its release has.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.machine import ROOT_VARIABLE
from trtx.backends.tensorrt_llm.releases import Release

TESTS = Path(__file__).parents[1]
# In every version and name that a stand-in shows.
MARK = "standin"
GPU_NAME = "stand-in for H100 80GB HBM3"
COMMANDS = ("trtllm-build", "trtllm-bench", "trtllm-serve")
CAPABILITIES = {80: "8.0", 89: "8.9", 90: "9.0", 100: "10.0"}


class Wrong(Exception):
    """Why a stand-in ends with an error, in the words of the program that it stands for."""


@dataclass(frozen=True)
class StandIns:
    """A folder with the stand-ins of one release, and what a step needs to find them."""

    folder: Path
    release: str

    @property
    def environ(self) -> dict[str, str]:
        """Variables for a step; programs of the machine stay reachable behind the stand-ins."""
        own = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(filter(None, (str(self.folder / "site"), str(TESTS), os.environ.get("PYTHONPATH")))),
            ROOT_VARIABLE: str(self.folder / "root"),
        }
        return {**os.environ, **own}

    def behave(self, **settings: str) -> None:
        """Have every program do something else: see `settings` of trtllm_standin_tools."""
        for name, value in settings.items():
            (self.folder / "settings").mkdir(exist_ok=True)
            (self.folder / "settings" / name).write_text(value)


def install(
    folder: Path, release: str, *, sm: int = 90, gpus: int = 4, library: str | None = None, tensorrt: str | None = None
) -> StandIns:
    """Make the stand-ins of a release with a number of GPUs; other versions may be said to be installed."""
    tables = Release.load(release)
    for command in COMMANDS:
        if command in tables.tools:
            _write_program(folder / "bin" / command, command, folder, release)
    for key, tool in tables.tools.items():
        if key == "quantize.py" or key.endswith("/convert_checkpoint.py"):
            _write_program(folder / "root" / tool.files[-1], key, folder, release)
    _write_smi(folder / "bin" / "nvidia-smi", sm, gpus)
    site = folder / "site"
    _write_metadata(site, "tensorrt_llm", f"{library or release}+{MARK}")
    _write_metadata(site, "tensorrt", f"{tensorrt or tables.tensorrt or '10.0.0.0'}+{MARK}")
    return StandIns(folder, release)


def activate(standins: StandIns, monkeypatch: object) -> None:
    """Have this process find the stand-ins, as a step in the container would."""
    setenv = monkeypatch.setenv  # type: ignore[attr-defined]
    for name in ("PATH", "PYTHONPATH", ROOT_VARIABLE):
        setenv(name, standins.environ[name])
    monkeypatch.syspath_prepend(str(standins.folder / "site"))  # type: ignore[attr-defined]


def _write_program(path: Path, tool: str, folder: Path, release: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\n"
        f"# A stand-in for {tool} of TensorRT-LLM {release}.\n"
        f"import sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        f"from support.trtllm_standin_tools import main\n"
        f"sys.exit(main({tool!r}, {release!r}, {str(folder)!r}, sys.argv[1:]))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _write_smi(path: Path, sm: int, gpus: int) -> None:
    """nvidia-smi, for any of its fields that trtx asks for, and for all GPUs or one of them (-i)."""
    fields = {
        "uuid": f"GPU-{MARK}-$gpu",
        "name": GPU_NAME,
        "compute_cap": CAPABILITIES[sm],
        "memory.total": "81559",
        "driver_version": "570.00",
        "index": "$gpu",
    }
    cases = "\n".join(f'      {name}) row="$row, {value}" ;;' for name, value in fields.items())
    path.write_text(
        f"""#!/bin/sh
# A stand-in for nvidia-smi.
gpus='{" ".join(map(str, range(gpus)))}'
while [ $# -gt 0 ]; do
  case "$1" in
    --query-gpu=*) asked=$(echo "${{1#--query-gpu=}}" | tr ',' ' ') ;;
    --id=*) gpus=$(echo "${{1#--id=}}" | tr ',' ' ') ;;
    -i) gpus=$(echo "$2" | tr ',' ' '); shift ;;
  esac
  shift
done
for gpu in $gpus; do
  row=
  for field in $asked; do
    case "$field" in
{cases}
    esac
  done
  echo "${{row#, }}"
done
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _write_metadata(site: Path, name: str, version: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def read_settings(folder: Path) -> Mapping[str, str]:
    """What `behave` was told, by name."""
    settings = folder / "settings"
    return {path.name: path.read_text() for path in settings.iterdir()} if settings.is_dir() else {}
