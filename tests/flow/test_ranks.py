"""A recipe of two tensor-parallel ranks on processors, from the plan to a server that answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from support.checkpoints import make_unified
from support.engines import write_tokenizer_folder
from support.modules import make_eager_engine, run_in_pieces
from support.project import Project, make_project

from trtx.backends.inductor.check import generate_greedily
from trtx.models.weights_config import load_weights_config
from trtx.runtime.card import load_card
from trtx.runtime.program import load_programs

RECIPE: dict[str, Any] = {
    "schema": "trtx/v1",
    "name": "ranks",
    "model": {"source": "file://model"},
    "quantization": {
        "stored": {
            "algorithm": "checkpoint",
            "calibration": {"dataset": "file://texts.txt", "samples": 1, "heldout": 16, "max_length": 32},
        }
    },
    "targets": {"pair": {"gpu": "cpu", "parallelism": {"tensor": 2}}},
    # The blocks of support.modules.
    "engine": {
        "limits": {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 64},
        "kv_cache": {"tokens_per_block": 8},
    },
    "benchmark": {
        "workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [2], "requests": 4}},
        "repeats": 1,
    },
}


def write_project(project: Project, **changes: Any) -> Project:
    make_unified(project.folder / "model", "int8_wo", vocab_size=258, num_hidden_layers=1)
    write_tokenizer_folder(project.folder / "model")
    (project.folder / "texts.txt").write_text("\n\n".join(f"text number {number}, and more" for number in range(64)))
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))
    return project


@pytest.fixture(scope="module")
def applied(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = write_project(make_project(tmp_path_factory.mktemp("ranks"), shared_cache))
    done = project.trtx("apply", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return project


def package_of(project: Project) -> Path:
    return project.folder / "out" / "ranks" / "pair" / "stored"


@contextmanager
def serving(project: Project) -> Iterator[tuple[int, str]]:
    """`trtx serve` of the package: its process and where it answers."""
    argv = project.argv("serve", package_of(project), "--port", 0, "--kv-cache-size", "1MiB", "-o", "json")
    with subprocess.Popen(argv, cwd=project.folder, env=project.environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not lines or lines[-1] not in ("}\n", ""):
                lines.append(process.stdout.readline())
            yield process.pid, json.loads("".join(lines))["url"]
        finally:
            process.kill()


def ranks_of(pid: int) -> list[int]:
    """The processes of an engine's other ranks."""
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in children.stdout.splitlines() if "rank_worker" in line]


def test_one_program_serves_both_ranks_and_the_package_has_the_weights_of_each(applied: Project) -> None:
    engine = package_of(applied) / "engine"
    card = load_card(engine)
    assert (card.rank.tensor, card.rank.rank, card.kv_cache.num_kv_heads) == (2, 0, 1)
    ranks = load_weights_config(engine / "weights").ranks
    assert [rank.file for rank in ranks] == ["rank0.safetensors", "rank1.safetensors"]
    assert {rank.layout_sha256 for rank in ranks} == {card.weights_layout_sha256}
    figures = json.loads((engine / "check.json").read_text())["figures"]
    assert figures["compiled_vs_eager"] < 1e-5
    assert (package_of(applied) / "benchmark" / "benchmark.json").is_file()


def test_packaged_ranks_answer_as_one_does(applied: Project, tmp_path: Path) -> None:
    engine = package_of(applied) / "engine"
    one = make_eager_engine(tmp_path, applied.folder / "model")
    pair = load_programs(engine, engine / "weights", 40)
    tokens = torch.randint(0, 258, (3, 20), generator=torch.Generator().manual_seed(1))
    expected, found = (run_in_pieces(programs, tokens, (5, 9), 4) for programs in (one, pair))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    prompts = tokens[:2, :7]
    assert torch.equal(generate_greedily(pair, prompts, 12), generate_greedily(one, prompts, 12))


def test_a_served_rank_that_is_killed_is_named_to_clients_and_to_who_watches_the_health(applied: Project) -> None:
    with serving(applied) as (pid, url):
        body = {"prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        answers = {
            httpx.post(f"{url}/v1/completions", json=body, timeout=30).json()["choices"][0]["text"] for _ in "ab"
        }
        assert len(answers) == 1
        (rank,) = ranks_of(pid)
        os.kill(rank, signal.SIGKILL)
        deadline = time.monotonic() + 20
        # Nobody asks for a token meanwhile.
        while (health := httpx.get(f"{url}/health")).status_code == 200:
            assert time.monotonic() < deadline, "nobody noticed"
            time.sleep(0.05)
        assert "rank 1 of 2 ended by SIGKILL" in health.json()["reason"]
        later = httpx.post(f"{url}/v1/completions", json=body)
        assert (later.status_code, later.json()["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize(
    ("parallelism", "message", "place"),
    [
        ({"tensor": 3}, "4 attention heads cannot be divided by tensor parallelism 3", "tensor: 3"),
        ({"tensor": 2, "pipeline": 2}, "pipeline: 2 is not available", "pipeline: 2"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused_where_it_is_asked_for(
    project: Project, parallelism: dict[str, int], message: str, place: str
) -> None:
    write_project(project, targets={"pair": {"gpu": "cpu", "parallelism": parallelism}})
    done = project.trtx("plan", "recipe.yaml")
    assert done.returncode == 2
    assert message in done.stderr
    assert place in done.stderr
    assert "Traceback" not in done.stderr
