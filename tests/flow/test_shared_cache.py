"""Two machines with caches of their own and one S3 bucket: the real commands, the real worker, a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.checkpoints import make_llama
from support.project import Project, make_project
from support.remotes import BUCKET, CREDENTIALS, Place, s3_server, writable

from trtx.cache.remote import blob_name

RECIPE = {
    "schema": "trtx/v1",
    "name": "small",
    "quantization": {"fp32": {"algorithm": "none"}},
    "targets": {"cpu": {"gpu": "cpu"}},
    "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
}
UNTIL = ("recipe.yaml", "--until", "download")


def make_machine(folder: Path, model: Path, remotes: str) -> Project:
    project = make_project(folder / "project", folder / "cache")
    recipe = RECIPE | {"model": {"source": f"file://{model}"}}
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Project(project.folder, {**project.environ, **CREDENTIALS, "TRTX_CACHE_REMOTES": remotes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_llama(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_fleet_makes_a_step_once_and_a_spoiled_one_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path) as server:
        remotes = f"s3://{BUCKET}/fleet;name=fleet;mode=read-write;endpoint={server.endpoint}"
        one, two, three = (make_machine(tmp_path / name, model, remotes) for name in ("one", "two", "three"))
        made = one.json("apply", *UNTIL)["status"]
        assert {row["reason"] for row in made} == {"made in this run"}
        assert server.requests("PUT", f"v1/entries/{made[0]['key'][:2]}/{made[0]['key']}.json")

        planned = two.json("plan", *UNTIL)
        assert {row["state"] for row in planned["status"]} == {"remote"}
        assert planned["remotes"][0]["mode"] == "read-write"
        taken = two.json("apply", *UNTIL)["status"]
        assert [row["key"] for row in taken] == [row["key"] for row in made]
        assert {row["reason"] for row in taken} == {"taken from remote fleet in this run"}
        assert {row["state"] for row in two.json("status")["status"]} == {"done"}
        assert two.trtx("apply", *UNTIL).stderr.count("cached") == len(made)

        spoil_every_blob(Place(f"s3://{BUCKET}/fleet", server.endpoint), [row["key"] for row in made])
        healed = three.trtx("apply", *UNTIL)
        assert healed.returncode == 0, healed.stderr
        assert "damaged" in healed.stderr
        assert "made in this run" in healed.stderr


def spoil_every_blob(place: Place, keys: list[str]) -> None:
    """Flip a bit of everything that the entries of these keys consist of."""
    blobs, remote = place.blobs(), writable(place.url, place.endpoint)
    for key in keys:
        offer = remote.find(key)
        assert offer is not None
        for name in {name for row in offer.chunks for name in row}:
            content = bytearray(blobs.read(blob_name(name), 1 << 30) or b"")
            content[len(content) // 2] ^= 1
            blobs.write(blob_name(name), bytes(content))
