"""The peers that the control plane is timed beside: Snakemake and DVC, on the graph of a trtx plan.

Each peer gets the same steps and dependencies, with one small file for the output of a step, where trtx has folders of
several files; that favours the peers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

SNAKEMAKE = "snakemake==9.27.1"
DVC = "dvc==3.67.1"

# One rule a stage, with the inputs of each step looked up: how a Snakemake user writes a matrix of jobs.
SNAKEFILE = """\
import json
INPUTS = json.load(open("inputs.json"))
rule all:
    input: [f"{step}.out" for step in INPUTS]
"""
RULE = """\
rule {stage}:
    input: lambda wildcards: [f"{{name}}.out" for name in INPUTS["{prefix}/" + wildcards.name]]
    output: "{prefix}/{{name}}.out"
    wildcard_constraints: name="{names}"
    shell: "echo {stage} > {{output}}"
"""


class Peers:
    """A virtual environment with the peers; made once and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"

    def install(self) -> None:
        """Install both from the package index, unless they are there."""
        stamp = self.folder / "installed.txt"
        wanted = f"{SNAKEMAKE} {DVC}"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"installing {wanted} into {self.folder}", file=sys.stderr)
        venv.create(self.folder, with_pip=True, clear=True)
        subprocess.run([self.bin / "pip", "install", "--quiet", SNAKEMAKE, DVC], check=True)
        stamp.write_text(wanted)

    def environ(self, folder: Path) -> dict[str, str]:
        """An environment in which neither asks the network or writes outside of `folder`."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / ".dvc-site"),
        }

    def run(self, folder: Path, *command: str) -> None:
        """Run a peer's command in a project folder. Raises CalledProcessError with its output shown."""
        argv = [str(self.bin / command[0]), *command[1:]]
        done = subprocess.run(argv, cwd=folder, env=self.environ(folder), capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            done.check_returncode()


def read_graph(plan: dict[str, Any]) -> dict[str, list[str]]:
    """Step id → ids of its inputs, of a plan as `trtx plan -o json` prints it."""
    return {
        step["id"]: list(dict.fromkeys(entry["step"] for entry in step["inputs"].values())) for step in plan["steps"]
    }


def write_snakemake(folder: Path, graph: dict[str, list[str]]) -> None:
    """A Snakemake project with the steps of a graph."""
    names: dict[str, list[str]] = defaultdict(list)
    for step in graph:
        prefix, _, name = step.partition("/")
        names[prefix].append(name)
    rules = [
        RULE.format(stage=prefix, prefix=prefix, names="|".join(name.replace(".", r"\\.") for name in sorted(found)))
        for prefix, found in names.items()
    ]
    folder.mkdir(parents=True)
    (folder / "inputs.json").write_text(json.dumps(graph))
    (folder / "Snakefile").write_text("\n".join([SNAKEFILE, *rules]))


def write_dvc(folder: Path, graph: dict[str, list[str]]) -> None:
    """A DVC project with the steps of a graph."""

    def out(step: str) -> str:
        return step.replace("/", "-") + ".out"

    stages = {
        step.replace("/", "-"): {
            "cmd": f"echo {step} > {out(step)}",
            "deps": [out(name) for name in inputs],
            "outs": [out(step)],
        }
        for step, inputs in graph.items()
    }
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
