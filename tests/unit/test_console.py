"""What is printed goes where it belongs, coloured only for people who can see it."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from trtx.console import Console, is_terminal, make_console, plain_table, wants_color


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(err: io.StringIO, *, color: bool = False, verbosity: int = 0) -> Console:
    return Console(io.StringIO(), err, color, verbosity)


@pytest.mark.parametrize(
    ("environ", "no_color", "expected"),
    [
        ({}, False, True),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({}, True, False),
    ],
)
def test_colour_can_be_refused(environ: dict[str, str], no_color: bool, expected: bool) -> None:
    assert wants_color(environ, Terminal(), no_color=no_color) is expected


def test_files_and_closed_streams_are_no_terminals() -> None:
    closed = Terminal()
    assert is_terminal(closed)
    closed.close()
    assert not wants_color({}, io.StringIO())
    assert not is_terminal(object())  # type: ignore[arg-type]


def test_messages_go_to_stderr_and_json_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console({})
    console.say("hello")
    console.json({"a": "é"})
    out, err = capsys.readouterr()
    assert err == "hello\n"
    assert json.loads(out) == {"a": "é"}
    assert "é" in out


def test_quiet_leaves_warnings_and_errors() -> None:
    err = io.StringIO()
    console = make(err, verbosity=-1)
    console.say("hello")
    console.detail("more")
    console.table(("a",), [("b",)])
    console.warn("careful")
    console.error("error: broken")
    assert err.getvalue() == "warning: careful\nerror: broken\n"


def test_details_come_with_verbose() -> None:
    quiet, verbose = io.StringIO(), io.StringIO()
    make(quiet).detail("more")
    make(verbose, verbosity=1).detail("more")
    assert (quiet.getvalue(), verbose.getvalue()) == ("", "more\n")


def test_severities_are_coloured_where_they_stand() -> None:
    err = io.StringIO()
    console = make(err, color=True)
    console.warn("f:1:2: warning: odd")
    console.error("error: broken")
    assert err.getvalue() == "f:1:2: \x1b[33mwarning:\x1b[0m odd\n\x1b[1;31merror:\x1b[0m broken\n"


def test_unknown_styles_and_empty_texts_stay_plain() -> None:
    console = make(io.StringIO(), color=True)
    assert console.paint("x", "no-such-style") == "x"
    assert console.paint("", "error") == ""
    assert console.paint("x", None) == "x"


def test_a_table_without_a_terminal_is_aligned_text() -> None:
    err = io.StringIO()
    make(err).table(("step", "time"), [("build/cpu", "9 s"), ("x", "12 s")], right=("time",))
    assert err.getvalue() == "step       time\nbuild/cpu   9 s\nx          12 s\n"


def test_a_table_without_rows_is_its_head() -> None:
    assert plain_table(("a", "b"), []) == "a  b"


def test_a_table_on_a_terminal_is_drawn_and_markup_is_not_obeyed() -> None:
    err = Terminal()
    make(err, color=True).table(("step",), [("[red]x[/red]",), ("y",)], styles=["ok"])
    assert "[red]x[/red]" in err.getvalue()
    assert "\x1b[" in err.getvalue()


def test_rich_is_not_imported_for_plain_output() -> None:
    script = """
import sys
from trtx.console import make_console
make_console({}).table(("a",), [("b",)])
print("rich" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
