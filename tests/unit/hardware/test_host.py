"""The machine is described from what the kernel and nvidia-smi say, limits of containers and jobs included."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.hardware import host as host_module
from trtx.hardware.gpus import CATALOGUE, GPUS, ISAS, V3_FLAGS, V4_FLAGS, find_gpu, isa_level
from trtx.hardware.host import (
    Host,
    HostGpu,
    check_can_build,
    count_cpus,
    count_memory,
    parse_nvidia_smi,
    read_gpus,
    read_host,
    visible_gpus,
)

GIB = 1 << 30
CPUINFO = "processor\t: 0\nmodel name\t: Some CPU 9000\nflags\t\t: fpu {}\n\nprocessor\t: 1\nmodel name\t: Other\n"
SMI = (
    "0, GPU-11aa, NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65.06\n"
    "1, GPU-22bb, NVIDIA L40S, 8.9, 46068, 580.65.06\n"
    "2, GPU-33cc, NVIDIA A100-SXM4-80GB, 8.0, 81920, 580.65.06\n"
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with 64 GiB of memory and no cgroup."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "cpuinfo").write_text(CPUINFO.format(" ".join(V3_FLAGS)))
    (folder / "meminfo").write_text(f"MemTotal:       {64 * GIB // 1024} kB\nMemFree:  5 kB\n")
    (folder / "self" / "cgroup").write_text("0::/\n")
    return folder


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)))


def make_host(**changes: object) -> Host:
    flags = frozenset(V3_FLAGS)
    return replace(Host("x86_64", "Some CPU", flags, 4, 8 * GIB), **changes)  # type: ignore[arg-type]


def test_a_machine_without_limits(proc: Path, cgroup: Path, many_cpus: None) -> None:
    found = read_host(gpus=False, proc=proc, cgroup=cgroup)
    assert (found.cpu_model, found.num_cpus, found.memory_bytes) == ("Some CPU 9000", 32, 64 * GIB)
    assert found.isa is not None
    assert found.isa.name == "x86-64-v3"


def test_limits_of_a_container(proc: Path, cgroup: Path, many_cpus: None) -> None:
    (cgroup / "cpu.max").write_text("250000 100000\n")
    (cgroup / "memory.max").write_text(f"{4 * GIB}\n")
    assert count_cpus(proc, cgroup) == 2
    assert count_memory(proc, cgroup) == 4 * GIB


def test_limits_of_a_slurm_job_stand_above_its_step(proc: Path, cgroup: Path, many_cpus: None) -> None:
    (proc / "self" / "cgroup").write_text("0::/system.slice/job_1/step_0/task_0\n")
    job = cgroup / "system.slice" / "job_1"
    (job / "step_0" / "task_0").mkdir(parents=True)
    (job / "memory.max").write_text(f"{16 * GIB}\n")
    (job / "step_0" / "memory.max").write_text("max\n")
    (job / "step_0" / "cpu.max").write_text("max 100000\n")
    assert count_memory(proc, cgroup) == 16 * GIB
    assert count_cpus(proc, cgroup) == 32


def test_limits_of_cgroup_1(proc: Path, cgroup: Path, many_cpus: None) -> None:
    (proc / "self" / "cgroup").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    for name, content in (
        ("memory/docker/abc/memory.limit_in_bytes", str(8 * GIB)),
        ("memory/memory.limit_in_bytes", str((1 << 63) - 4096)),
        ("cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "400000"),
        ("cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000"),
        ("cpu,cpuacct/cpu.cfs_quota_us", "-1"),
        ("cpu,cpuacct/cpu.cfs_period_us", "100000"),
    ):
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(content)
    assert count_memory(proc, cgroup) == 8 * GIB
    assert count_cpus(proc, cgroup) == 4


def test_a_cgroup_that_is_not_visible_is_not_a_limit(proc: Path, cgroup: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/../outside\n")
    assert count_memory(proc, cgroup) == 64 * GIB


def test_less_than_one_processor_counts_as_one(proc: Path, cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("50000 100000\n")
    assert count_cpus(proc, cgroup) == 1


def test_a_machine_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    found = read_host(gpus=False, proc=tmp_path, cgroup=tmp_path)
    assert (found.cpu_model, found.cpu_flags, found.memory_bytes, found.isa) == ("unknown", frozenset(), 0, None)


def test_this_machine_can_be_read() -> None:
    found = read_host()
    assert found.num_cpus >= 1
    assert found.memory_bytes > GIB // 4


def test_levels_contain_each_other_and_name_the_newest() -> None:
    assert V3_FLAGS < V4_FLAGS
    assert isa_level(V4_FLAGS | {"sse"}) == ISAS["x86-64-v4"]
    assert isa_level(V4_FLAGS - {"avx512vl"}) == ISAS["x86-64-v3"]
    assert isa_level(V3_FLAGS - {"movbe"}) is None


def test_a_machine_builds_for_the_cpus_it_reaches() -> None:
    check_can_build(make_host(), find_gpu("cpu"))
    check_can_build(make_host(cpu_flags=V4_FLAGS), find_gpu("cpu-avx512"))
    check_can_build(make_host(machine="aarch64"), find_gpu("h100"))


def test_a_machine_without_avx512_does_not_build_for_it() -> None:
    with pytest.raises(EnvironmentProblem, match="x86-64-v4 engines") as caught:
        check_can_build(make_host(), find_gpu("cpu-avx512"))
    assert "avx512f" in caught.value.why
    assert "gpu: cpu" in caught.value.fix


def test_an_old_machine_is_told_what_is_missing() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        check_can_build(make_host(cpu_flags=frozenset({"sse"})), find_gpu("cpu"))
    assert "avx2" in caught.value.why
    assert "AVX2" in caught.value.fix


def test_another_processor_is_refused_by_name() -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be built on this machine") as caught:
        check_can_build(make_host(machine="aarch64"), find_gpu("cpu"))
    assert "aarch64" in caught.value.why


def test_gpus_are_read_and_recognized() -> None:
    gpus, driver, problem = parse_nvidia_smi(SMI)
    assert [gpu.catalogue_name for gpu in gpus] == ["h100-sxm-80gb", "l40s-48gb", "a100-sxm-80gb"]
    assert [gpu.arch for gpu in gpus] == ["sm_90", "sm_89", "sm_80"]
    assert (driver, problem) == ("580.65.06", None)


@pytest.mark.parametrize(
    ("name", "capability", "memory", "expected"),
    [
        ("NVIDIA H100 PCIe", "9.0", 81559, "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "9.0", 95830, "h100-nvl-94gb"),
        ("NVIDIA H200", "9.0", 143771, "h200-sxm-141gb"),
        ("NVIDIA A100-PCIE-40GB", "8.0", 40960, "a100-pcie-40gb"),
        ("NVIDIA A10G", "8.6", 23028, "a10-24gb"),
        ("NVIDIA B200", "10.0", 183359, "b200-sxm-180gb"),
        ("NVIDIA GH200 480GB", "9.0", 97871, "gh200-96gb"),
        ("NVIDIA GeForce RTX 4090", "8.9", 24564, "rtx-4090-24gb"),
        ("NVIDIA L40", "8.9", 46068, "l40-48gb"),
        ("NVIDIA T4", "7.5", 15360, None),
    ],
)
def test_nvidias_names_are_matched(name: str, capability: str, memory: int, expected: str | None) -> None:
    (gpu,), _, _ = parse_nvidia_smi(f"0, GPU-1, {name}, {capability}, {memory}, 1.0\n")
    assert gpu.catalogue_name == expected


def test_a_line_that_is_not_understood_is_a_problem() -> None:
    assert parse_nvidia_smi("0, GPU-1, [N/A]\n")[2] == "nvidia-smi printed a line that is not understood: 0,GPU-1,[N/A]"
    assert parse_nvidia_smi("\n") == ((), None, None)


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{SMI}END")
    assert len(read_gpus()[0]) == 3


def test_a_failing_driver_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert read_gpus()[2] == "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"


def test_a_silent_failure_has_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    assert read_gpus()[2] == "nvidia-smi: exit status 9"


def test_a_driver_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(host_module, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    assert "did not answer" in (read_gpus()[2] or "")


def test_a_program_that_does_not_start_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "")
    (tmp_path / "nvidia-smi").write_text("#!/no/such/shell\n")
    assert "could not be started" in (read_gpus()[2] or "")


def test_no_nvidia_smi_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus() == ((), None, None)


@pytest.mark.parametrize(
    ("setting", "visible"),
    [(None, [0, 1, 2]), ("", []), ("1", [1]), ("2,0", [2, 0]), ("GPU-22", [1]), ("0,7,1", [0]), ("-1", [])],
)
def test_hidden_gpus_are_not_counted(setting: str | None, visible: list[int]) -> None:
    machine = make_host(gpus=parse_nvidia_smi(SMI)[0])
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [gpu.index for gpu in visible_gpus(machine, environ)] == visible


def test_names_of_the_catalogue_are_unique() -> None:
    names = [name for gpu in CATALOGUE for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names)) == len(GPUS)


def test_an_unknown_device_gets_the_nearest_name() -> None:
    assert find_gpu("h100") is find_gpu("h100-sxm-80gb")
    with pytest.raises(UsageProblem) as caught:
        find_gpu("h10")
    assert caught.value.fix == "did you mean 'h100'?"


def test_a_known_name_of_another_architecture_is_not_taken_for_it() -> None:
    assert HostGpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", "sm_80", 80 * GIB).catalogue_name is None
