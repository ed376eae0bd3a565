"""Whether the interpreter that runs a step has what the step was planned with: its key says that it had.

`python -m trtx.stages.toolchain NAME…` prints what it has, as a JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from typing import Any

from trtx.errors import EnvironmentProblem
from trtx.hardware.software import read_compiler, read_nvcc
from trtx.hardware.versions import installed_version
from trtx.kernels.sources import sources_digest
from trtx.stages.find_params import find_params, tables_digest
from trtx.stages.params import PARAMS

ABSENT = "absent"
# Not of an interpreter: trtx's own files are compared by the stages' code versions, tables by themselves.
TABLES = "tables"
NOT_HERE = frozenset({"trtx", "engine", TABLES})
# Facts of a release's image: what is installed in it is compared by trtx.backends.tensorrt_llm.machine.
OF_IMAGE = "image-"


def check_toolchain(step: str, factors: Mapping[str, Any]) -> None:
    """Compare a step's factors with this interpreter. Raises EnvironmentProblem, one sentence, where they differ."""
    planned = dict(factors.get("toolchain", {}))
    wrong = [
        f"{name} {version}, here is {here}"
        for name, version in planned.items()
        if is_of_interpreter(name) and (here := find_version(name)) != version
    ]
    stage = factors.get("stage")
    if TABLES in planned:
        here = tables_digest(factors["stage"], factors["params"], os.environ)
        if here != planned[TABLES]:
            wrong.append(f"other tables of its release ({planned[TABLES][:12]}, here are {here[:12]})")
    code = find_params(stage, factors.get("params", {})).code_version if stage in PARAMS else None
    if code is not None and factors.get("code", code) != code:
        wrong.append(f"version {factors['code']} of the stage {factors['stage']}, here is version {code}")
    if wrong:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        raise EnvironmentProblem(
            f"{step} was planned with other versions: {'; '.join(wrong)}",
            why=f"{sys.executable} on {host} is not the installation that the plan was made with",
            fix="install the same versions there and here, or name another interpreter: runners.NAME.python",
        )


def is_of_interpreter(name: str) -> bool:
    """Whether a name of the toolchain is something that an interpreter and its machine have: see find_version."""
    return name not in NOT_HERE and not name.startswith(OF_IMAGE)


def find_version(name: str) -> str:
    """What stands in the factors for a name of the toolchain, by this interpreter and machine."""
    if name == "python":
        return platform.python_version()
    if name == "c++":
        version = read_compiler(os.environ)
        return f"g++ {version}" if version else ABSENT
    if name == "nvcc":
        version = read_nvcc(os.environ)
        return f"nvcc {version}" if version else ABSENT
    return sources_digest() if name == "kernels" else installed_version(name) or ABSENT


if __name__ == "__main__":
    print(json.dumps({name: find_version(name) for name in sys.argv[1:]}))
