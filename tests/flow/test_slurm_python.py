"""The interpreter of a cluster's jobs is another than the one that planned: that is refused before anything runs."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import yaml
from support.slurm_site import Site

from trtx.hardware.versions import installed_version
from trtx.runners.slurm.commands import Answer
from trtx.runners.slurm.interpreter import READY, InterpreterFacts, read_answer


def use_python(site: Site, script: str, **settings: object) -> Path:
    """Have the runner use a shell script as its interpreter."""
    python = site.steps.folder / "other-python"
    python.write_text(f"#!/bin/bash\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    path = site.project.folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["runners"]["cluster"] |= {"python": str(python), **settings}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return python


def line_of_python(site: Site) -> int:
    lines = (site.project.folder / "recipe.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith("python:"))


def test_an_interpreter_with_another_torch_is_refused_with_its_place(site: Site) -> None:
    own = f'exec {site.steps.python} "$@"'
    other = (
        f'if [ "$2" = trtx.stages.toolchain ]; then {own} | sed "s/{installed_version("torch")}/1.2.3/"; else {own}; fi'
    )
    python = use_python(site, other.replace(f"{own} |", f'{site.steps.python} "$@" |'))
    done = site.project.trtx("apply", "recipe.yaml")
    assert done.returncode == 2
    assert f"recipe.yaml:{line_of_python(site)}:" in done.stderr
    assert f"{python} has torch 1.2.3 instead of {installed_version('torch')}" in done.stderr
    assert "runners.cluster.python" in done.stderr
    assert site.sbatch_calls() == 0


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'No module named trtx' >&2; exit 1", "has no trtx, or another version of it"),
        ("echo 'Illegal instruction' >&2; exit 132", "cannot run trtx: Illegal instruction"),
        ("echo hello", "answered 'hello'"),
        ("exit 127", "there is no interpreter "),
    ],
)
def test_an_interpreter_that_cannot_run_trtx_is_refused(script: str, what: str, site: Site) -> None:
    use_python(site, script)
    done = site.project.trtx("apply", "recipe.yaml", "--until", "convert")
    assert done.returncode == 2
    assert what in done.stderr
    assert site.sbatch_calls() == 0


def test_an_interpreter_that_only_lies_where_it_is_asked_is_found_out_by_the_job(site: Site) -> None:
    """As where the login node has another installation than the nodes."""
    asked = f'if [ "$2" = trtx.stages.toolchain ]; then exec {site.steps.python} "$@"; fi'
    versions = "import trtx.stages.toolchain as t; t.installed_version = lambda name: '9.9'"
    job = f'exec {site.steps.python.parent}/worker "$@"'
    worker = site.steps.python.parent / "worker"
    worker.write_text(
        '#!/bin/bash\nif [ "$2" != trtx.stages.worker ]; then '
        f'exec {site.steps.python} "$@"; fi\n'
        f'exec {sys.executable} -c "{versions}; import sys; from support import light_worker; '
        f'sys.exit(light_worker.main())" "$3"\n'
    )
    worker.chmod(0o755)
    use_python(site, f"{asked}\n{job}")
    done = site.project.trtx("apply", "recipe.yaml", "--until", "calibrate")
    assert done.returncode == 6
    assert "calibrate/fp32 was planned with other versions" in done.stderr
    assert f"torch {installed_version('torch')}, here is 9.9" in done.stderr


def test_it_is_asked_once_and_where_its_setup_fails_not_at_all(site: Site) -> None:
    """Setup lines may need what only nodes have: the jobs find out by themselves."""
    asked = site.steps.folder / "asked"
    script = f'[ "$2" = trtx.stages.toolchain ] && echo x >> {asked}\nexec {site.steps.python} "$@"'
    use_python(site, script)
    for until in ("calibrate", "convert"):
        assert site.project.trtx("apply", "recipe.yaml", "--until", until).returncode == 0
    assert asked.read_text() == "x\n" * len(asked.read_text().split())
    use_python(site, "exit 1", setup=['test -n "$SLURM_JOB_ID"'])
    done = site.project.trtx("apply", "recipe.yaml", "--until", "build", "--detach")
    assert done.returncode == 0, done.stderr
    assert site.sbatch_calls() > 2


def test_what_tells_nothing_about_the_interpreter_refuses_nothing() -> None:
    for answer in (Answer(None), Answer(1, "module: not found\n"), Answer(255, "")):
        assert read_answer("python3", answer) == InterpreterFacts()
    good = Answer(0, f'hello of a module\n{READY}\n{{"torch": "2.0"}}\n')
    assert read_answer("python3", good).versions == {"torch": "2.0"}
