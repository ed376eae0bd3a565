"""What short commands import: every module is a part of the time that people wait for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtx.cli.app import GROUPS, VERBS
from trtx.cli.main import choose_verbs

# Libraries that a verb imports when it has a use for them.
LIBRARIES = {"docker", "fsspec", "httpx", "huggingface_hub", "jinja2", "packaging", "requests", "rich", "torch", "xml"}
# What runs steps, asks remotes or explains, none of which a plan does.
MODULES = {
    "trtx.cache.remote",
    "trtx.cache.signing",
    "trtx.plan.cluster_run",
    "trtx.plan.execute",
    "trtx.plan.site_schema",
    "trtx.plan.why",
    "trtx.recipe.describe",
    "trtx.recipe.messages",
    "trtx.runners.local",
}
SMALL = """
schema: trtx/v1
name: small
model: {source: demo://tiny-llama}
quantization: {fp32: {algorithm: none}}
engine: {limits: {max_batch_size: 2, max_num_tokens: 256, max_seq_len: 128}}
targets: {cpu: {gpu: cpu}}
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """Every module that a command imports."""
    script = (
        "import json, sys; from trtx.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n' + json.dumps(list(sys.modules))); sys.exit(code)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRTX_")}
    environ |= {"TRTX_CACHE_DIR": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "no-config")}
    argv = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_plan_imports_only_what_plans(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL)
    imported(tmp_path, "plan", "recipe.yaml")  # The first plan of a cache looks for what packages pin.
    modules = imported(tmp_path, "plan", "recipe.yaml", "-o", "json")
    assert modules & (LIBRARIES | MODULES) == set()
    assert {f"trtx.cli.{name}" for name in VERBS} & modules <= {"trtx.cli.plan"}


def test_the_help_imports_no_recipe_and_no_plan(tmp_path: Path) -> None:
    modules = imported(tmp_path, "--help")
    assert {"pydantic", "yaml", "trtx.recipe.schema", "trtx.cli.prepare", "trtx.plan"} & modules == set()
    assert modules & (LIBRARIES | MODULES) == set()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-v", "plan", "recipe.yaml"], ("plan",)),
        (["cache", "ls"], ("cache",)),
        (["--help"], (*VERBS, *GROUPS)),
        (["--help", "plan"], (*VERBS, *GROUPS)),
        (["plam"], (*VERBS, *GROUPS)),
        ([], (*VERBS, *GROUPS)),
    ],
)
def test_the_verb_that_is_called_is_imported_alone(arguments: list[str], expected: tuple[str, ...]) -> None:
    assert choose_verbs(arguments) == expected
