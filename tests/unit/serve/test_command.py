from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.engines import make_card

from trtx.cli.main import main


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A folder with the parts of an engine, none of which can be loaded."""
    (tmp_path / "engine" / "weights").mkdir(parents=True)
    card = make_card().model_dump(mode="json", by_alias=True)
    (tmp_path / "engine" / "engine.json").write_text(json.dumps(card))
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv-cache-size", "5"], "needs a unit"),
        (["--kv-cache-size", "5gib"], "did you mean '5GiB'?"),
        (["--drain", "soon"], "is not a duration"),
        (["--memory-fraction", "1.5"], "--memory-fraction must be above 0"),
        (["--port", "70000"], "--port"),
        (["--max-body-size", "8"], "needs a unit"),
        (["--max-waiting", "-1"], "--max-waiting"),
        (["--api-key-file", "/no/such/file"], "cannot read the API keys of /no/such/file"),
        (["--api-key-env", "TRTX_TEST_NO_SUCH_VARIABLE"], "TRTX_TEST_NO_SUCH_VARIABLE has no API key"),
    ],
)
def test_a_wrong_flag_is_a_usage_problem(
    engine: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["serve", str(engine), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_engine_is_a_usage_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "is not an engine folder" in capsys.readouterr().err


def test_an_engine_with_a_missing_part_is_a_failed_verification(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(engine), "--port", "0"]) == 8
    assert "has no tokenizer.json" in capsys.readouterr().err


def test_an_installation_without_the_extra_says_how_to_get_it(
    engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = importlib.import_module

    def import_module(name: str, *more: Any) -> Any:
        if name == "trtx.serve.main":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return load(name, *more)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert main(["serve", str(engine)]) == 6
    message = capsys.readouterr().err
    assert "torch is not installed" in message
    assert "pip install 'trtx[engine]'" in message


def test_sizes_and_durations_reach_the_server_as_numbers(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: dict[str, Any] = {}
    server = importlib.import_module("trtx.serve.main")
    monkeypatch.setattr(server, "serve_engine", lambda folder, **options: served.update(options, folder=folder))
    flags = ["--kv-cache-size", "1GiB", "--drain", "2min", "--host", "::1", "--model-name", "m"]
    flags += ["--policy", "guaranteed-no-evict", "--no-prefix-reuse"]
    assert main(["serve", str(engine), *flags]) == 0
    assert served.pop("say")
    assert served == {
        "folder": engine,
        "host": "::1",
        "port": 8000,
        "model_name": "m",
        "kv_cache_bytes": 1 << 30,
        "announce": None,
        "memory_fraction": 0.9,
        "scheduler": {"policy": "guaranteed-no-evict", "chunked_prefill": True, "prefix_reuse": False},
        "overlap": False,
        "tool_call_parser": "auto",
        "api_keys": (),
        "max_waiting": 1024,
        "max_body_bytes": 8 << 20,
        "log_requests": False,
        "drain_s": 120.0,
    }
