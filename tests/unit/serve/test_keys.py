from __future__ import annotations

from pathlib import Path

import pytest

from trtx.errors import UsageProblem
from trtx.serve.keys import read_api_keys


def test_keys_come_from_a_file_and_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst\n\n  second \n")
    assert read_api_keys(file, "KEY", {"KEY": " third\n"}) == ("first", "second", "third")
    assert read_api_keys(None, None, {"KEY": "third"}) == ()


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_file_without_keys_does_not_open_the_server_to_everybody(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UsageProblem, match="API keys"):
        read_api_keys(file, None, {})


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}, {"KEY": " "}])
def test_a_variable_without_a_key_is_a_mistake(environ: dict[str, str]) -> None:
    with pytest.raises(UsageProblem, match="KEY has no API key"):
        read_api_keys(None, "KEY", environ)
