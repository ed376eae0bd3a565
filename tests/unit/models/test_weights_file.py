from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.models.linear_layout import TensorSpec
from trtx.models.weights_file import ALIGNMENT_BYTES, WeightsWriter, map_weights

SPECS = [
    TensorSpec("scale", (), "float32"),
    TensorSpec("odd", (7, 3), "bfloat16"),
    TensorSpec("fp8", (5, 5), "float8_e4m3fn"),
    TensorSpec("int4", (3,), "uint8"),
    TensorSpec("whole", (16, 16), "float32"),
    TensorSpec("int8", (9,), "int8"),
]


def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {spec.name: (torch.randn(spec.shape) * 20).to(getattr(torch, spec.dtype)) for spec in SPECS}


def write(path: Path) -> None:
    with WeightsWriter(path, SPECS) as writer:
        for name, value in values().items():
            writer.write(name, value)


def test_a_written_file_is_valid_and_holds_the_same_bits(tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        for name, value in values().items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


def test_mapped_tensors_start_on_64_byte_boundaries_and_have_no_padding_among_them(tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors")
    mapped = map_weights(tmp_path / "w.safetensors", SPECS)
    assert set(mapped) == set(values())
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in mapped.values())


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_strided_tensor_is_written_in_order(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3).t()
    specs = [TensorSpec("t", (3, 2), "float32")]
    with WeightsWriter(tmp_path / "w", specs) as writer:
        writer.write("t", value)
    assert torch.equal(map_weights(tmp_path / "w", specs)["t"], value)


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([*SPECS, TensorSpec("more", (1,), "float32")], "more is missing"),
        (SPECS[1:], "scale is not known"),
        ([TensorSpec("scale", (1,), "float32"), *SPECS[1:]], "scale is [] of torch.float32"),
    ],
)
def test_a_file_of_other_tensors_is_never_handed_to_compiled_code(
    tmp_path: Path, specs: list[TensorSpec], why: str
) -> None:
    write(tmp_path / "w")
    with pytest.raises(VerificationFailed) as caught:
        map_weights(tmp_path / "w", specs)
    assert caught.value.why == why


def test_a_file_without_alignment_is_never_handed_to_compiled_code(tmp_path: Path) -> None:
    save_file(values(), tmp_path / "w")
    with pytest.raises(VerificationFailed) as caught:
        map_weights(tmp_path / "w", SPECS)
    assert "does not start at a multiple of 64 bytes" in caught.value.why


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-64])
    with pytest.raises(VerificationFailed, match="does not hold the weights"):
        map_weights(tmp_path / "w", SPECS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("odd", torch.zeros(7, 3)), ("scale", torch.zeros(1)), ("scale", torch.zeros((), dtype=torch.float16))],
)
def test_a_tensor_that_is_not_the_one_announced_leaves_no_file(tmp_path: Path, name: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="where the layout has"), WeightsWriter(tmp_path / "w", SPECS) as writer:
        writer.write(name, value)
    assert not (tmp_path / "w").exists()


def test_a_missing_tensor_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd was announced"), WeightsWriter(tmp_path / "w", SPECS) as writer:
        writer.write("scale", torch.zeros(()))
    assert not (tmp_path / "w").exists()


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    class Full:
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "no space")

        def tell(self) -> int:
            return 0

        def close(self) -> None:
            pass

    with pytest.raises(EnvironmentProblem) as caught, WeightsWriter(tmp_path / "w", SPECS) as writer:
        writer._stream.close()
        writer._stream = Full()  # type: ignore[assignment]
        writer.write("scale", torch.zeros(()))
    assert "the disk is full" in caught.value.render()
    assert not (tmp_path / "w").exists()
