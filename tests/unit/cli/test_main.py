"""Every error leaves the program as one message with its exit code, and no traceback unless asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trtx.cli import main as program
from trtx.cli.options import spell
from trtx.errors import BY_NAME, TrtxError
from trtx.recipe.overrides import Overrides


@pytest.fixture
def plan_raises(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `trtx plan` raise an error."""

    def install(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("trtx.cli.prepare.prepare", fail)

    return install


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_an_error_is_printed_with_cause_and_fix_and_its_exit_code(
    name: str, plan_raises: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_raises(BY_NAME[name]("it broke", why="a reason", fix="a way out"))
    assert program.main(["plan", "recipe.yaml"]) == BY_NAME[name].exit_code
    printed = capsys.readouterr()
    assert printed.err == "error: it broke\n  why: a reason\n  fix: a way out\n"
    assert printed.out == ""


def test_exit_codes_of_errors_are_those_of_the_manual() -> None:
    codes = {name: cls.exit_code for name, cls in BY_NAME.items()}
    assert codes == {
        "StepFailed": 1,
        "UsageProblem": 2,
        "GateFailed": 3,
        "Inconclusive": 4,
        "EnvironmentProblem": 6,
        "LockOutOfDate": 7,
        "VerificationFailed": 8,
        "TimedOut": 124,
        "Interrupted": 130,
    }


def test_an_unforeseen_error_is_one_message_and_a_traceback_only_with_v(
    plan_raises: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_raises(ZeroDivisionError("division by zero"))
    assert program.main(["plan", "recipe.yaml"]) == TrtxError.exit_code
    assert "Traceback" not in (printed := capsys.readouterr().err)
    assert "ZeroDivisionError: division by zero" in printed
    program.main(["plan", "recipe.yaml", "-v"])
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_leaves_with_130(plan_raises: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan_raises(KeyboardInterrupt())
    assert program.main(["plan", "recipe.yaml"]) == 130
    assert capsys.readouterr().err == "error: stopped\n"


@pytest.mark.parametrize("arguments", [["schema"], ["cache", "ls", "-o", "json"]])
def test_a_reader_that_leaves_early_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "trtx.cli", *arguments]
    environ = {**os.environ, "TRTX_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [["schema"], ["plan", "none.yaml", "-o", "json"]])
def test_results_that_cannot_be_written_are_one_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        argv = [sys.executable, "-m", "trtx.cli", *arguments]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_is_utf8_whatever_the_locale_and_holds_any_file_name(encoding: str) -> None:
    name = b"n\xc3\xa9-\xff.yaml"
    argv = [sys.executable.encode(), b"-m", b"trtx.cli", b"plan", name, b"-o", b"json"]
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(argv, capture_output=True, check=False, env=environ)
    assert done.returncode == 2
    what = json.loads(done.stdout.decode())["error"]["what"]
    assert "né-\udcff.yaml" in what


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["apply", "r.yaml", "-v"], ["-v", "apply", "r.yaml"]),
        (["apply", "--no-color", "r.yaml", "-q"], ["--no-color", "-q", "apply", "r.yaml"]),
        (["logs", "--", "-v"], ["logs", "--", "-v"]),
    ],
)
def test_global_flags_may_stand_behind_the_verb(arguments: list[str], expected: list[str]) -> None:
    assert program.hoist_global_flags(arguments) == expected


def test_an_unknown_verb_is_a_usage_error_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["aply"]) == 2
    assert "apply" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trtx ")


@pytest.mark.parametrize(
    ("argument", "overrides", "typed"),
    [
        ("recipe.yaml", Overrides(), "recipe.yaml"),
        ("recipe.yaml:*/fp8", Overrides(), "'recipe.yaml:*/fp8'"),
        ("r.yaml", Overrides(("name=a b",), ("package",)), "r.yaml --set 'name=a b' --unset package"),
    ],
)
def test_the_next_command_is_spelled_so_that_a_shell_takes_it(argument: str, overrides: Overrides, typed: str) -> None:
    assert spell(argument, overrides) == typed
