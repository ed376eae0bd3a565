"""The command line of the checkpoint writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import make_llama

from trtx.backends.tensorrt_llm.checkpoint.__main__ import main


def test_a_folder_is_converted_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_llama(tmp_path / "hf")
    hf, out = str(tmp_path / "hf"), tmp_path / "out"
    assert main([hf, str(out), "--tensor", "2", "--pipeline", "2", "--weight-only", "int8_wo"]) == 0
    assert "trtllm-build packs them" in capsys.readouterr().err
    config = json.loads((out / "config.json").read_text())
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 2}
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert main(["--check", str(out)]) == 0
    assert capsys.readouterr().out == ""

    (out / "rank3.safetensors").unlink()
    assert main(["--check", str(out)]) == 8
    assert capsys.readouterr().out.startswith("error: rank3.safetensors: rank3.safetensors is missing (")


def test_whole_rows_of_int4_are_another_format(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--weight-only", "int4_wo", "--whole-rows"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["quant_algo"] == "W4A16"


def test_errors_have_their_own_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_llama(tmp_path / "hf")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--tensor", "3"]) == 2
    assert "error: the model cannot be cut into 3 tensor-parallel ranks" in capsys.readouterr().err
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"nothing")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out")]) == 8
    with pytest.raises(SystemExit):
        main([str(tmp_path / "hf")])
    assert "give the folder to convert and the folder to write" in capsys.readouterr().err
