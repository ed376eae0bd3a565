"""The deployment folder: what is in it, that it can be checked, and that no name breaks out of its file."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from trtx.backends.package_sums import make_sums
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import sha256_file
from trtx.runtime.scheduler import SchedulerSettings

# Names that would end a quotation, start a command, or expand, if anything here were pasted instead of quoted.
HOSTILE = [
    'a" && curl evil; echo "',
    "$(touch pwned) `touch pwned` ${HOME} $HOME",
    "x\nRUN touch /pwned\nUSER root",
    "x\r\n  privileged: true",
    "{{ 7 * 7 }} {% raw %} #}",
    "- key: value # comment\t'single'",
    "\\",
    "| cell | </td><script>alert(1)</script>",
    "ünïcode \u2028 next \x85 line",
]


class Deploy(Protocol):
    def __call__(self, folder: str = ..., benchmark: Path | None = ..., **changes: Any) -> Path: ...


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of a Dockerfile with continued lines joined, by the rules of its reference."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(head, rest.strip()) for head, _, rest in (line.partition(" ") for line in joined.splitlines())]


def labels(dockerfile: Path) -> dict[str, str]:
    """Labels as Docker reads them: double-quoted words in which a backslash escapes."""
    (text,) = [rest for head, rest in instructions(dockerfile) if head == "LABEL"]
    found = re.findall(r'([a-z0-9._]+)="((?:[^"\\]|\\.)*)"\s*', text)
    assert re.sub(r'([a-z0-9._]+)="((?:[^"\\]|\\.)*)"\s*', "", text) == "", "nothing stands outside the quotes"
    assert not re.search(r"(?<!\\)(?:\\\\)*\$", text), "no variable is expanded"
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def relative_files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_folder_holds_a_ready_engine_and_everything_to_run_it(package: Path) -> None:
    files = relative_files(package)
    assert {name for name in files if name.startswith("engine/")} == {
        "engine/engine.json",
        "engine/check.json",
        "engine/programs/kernels.so",
        "engine/programs/step.pt2",
        "engine/weights/config.json",
        "engine/weights/rank0.safetensors",
        "engine/tokenizer/tokenizer.json",
        "engine/tokenizer/chat_template.jinja",
    }
    single = {"Dockerfile", "compose.yaml", "entrypoint.py", "healthcheck.py", "README.md", "requirements.txt"}
    assert single | {"deployment.json", "SHA256SUMS"} <= files


def test_weights_are_linked_and_not_copied(package: Path, weights: Path) -> None:
    assert (package / "engine/weights/rank0.safetensors").samefile(weights / "rank0.safetensors")


def test_sha256sum_confirms_every_file(package: Path) -> None:
    listed = {line.partition("  ")[2] for line in (package / "SHA256SUMS").read_text().splitlines()}
    assert listed == relative_files(package) - {"SHA256SUMS"}
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=package, check=False).returncode == 0


def test_the_same_inputs_give_the_same_bytes(deploy: Deploy) -> None:
    first, second = deploy("a"), deploy("b")
    assert (first / "SHA256SUMS").read_bytes() == (second / "SHA256SUMS").read_bytes()
    assert {name: sha256_file(first / name) for name in relative_files(first)} == {
        name: sha256_file(second / name) for name in relative_files(second)
    }


def test_nothing_in_the_folder_names_this_machine_or_the_time(package: Path, tmp_path: Path) -> None:
    for name in relative_files(package) - {"engine/weights/rank0.safetensors"}:
        text = (package / name).read_bytes()
        assert str(tmp_path).encode() not in text, name
        assert str(Path.home()).encode() + b"/" not in text, name


def test_the_dockerfile_is_pinned_and_runs_without_root(package: Path) -> None:
    parsed = instructions(package / "Dockerfile")
    known = {"FROM", "LABEL", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert {head for head, _ in parsed} == known
    assert parsed[0] == ("FROM", "docker.io/library/python:3.12-slim-bookworm")
    heads = [head for head, _ in parsed]
    assert heads.index("USER") > max(number for number, head in enumerate(heads) if head in ("RUN", "COPY"))
    assert dict(parsed)["USER"] == "10001:10001"
    assert dict(parsed)["EXPOSE"] == "8000"
    assert json.loads(dict(parsed)["ENTRYPOINT"]) == ["python", "/opt/trtx/entrypoint.py", "--host", "0.0.0.0"]  # noqa: S104
    health = dict(parsed)["HEALTHCHECK"]
    assert json.loads(health.partition("CMD ")[2]) == ["python", "/opt/trtx/healthcheck.py"]
    installs = [rest for head, rest in parsed if head == "RUN" and "pip install" in rest]
    assert installs
    assert all("--no-deps" in rest for rest in installs)
    assert "latest" not in (package / "Dockerfile").read_text()


def test_the_dockerfile_copies_only_what_the_folder_has(package: Path) -> None:
    for head, rest in instructions(package / "Dockerfile"):
        if head == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (package / source).exists(), source


def test_the_shell_commands_of_the_dockerfile_parse(package: Path) -> None:
    for head, rest in instructions(package / "Dockerfile"):
        if head == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0, rest


def test_every_requirement_is_one_exact_version(package: Path) -> None:
    lines = (package / "requirements.txt").read_text().splitlines()
    assert [
        line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[^ ;]+|--extra-index-url https://\S+", line)
    ] == []


def test_the_labels_name_the_deployment_and_what_it_is_made_of(package: Path) -> None:
    found = labels(package / "Dockerfile")
    body = json.loads((package / "deployment.json").read_bytes())
    assert found["org.opencontainers.image.title"] == "llama"
    assert found["org.opencontainers.image.version"] == body["version"]
    assert found["io.trtx.key.engine"] == body["keys"]["engine"]
    assert found["io.trtx.cell"] == "cpu/none"


def test_compose_serves_locally_read_only_and_comes_back_after_a_crash(package: Path) -> None:
    body = yaml.safe_load((package / "compose.yaml").read_text())
    (service,) = body["services"].values()
    assert service["image"] == json.loads((package / "deployment.json").read_bytes())["image"]
    assert service["build"] == {"context": "."}
    assert service["ports"] == ["${TRTX_BIND:-127.0.0.1}:${TRTX_PORT:-8000}:8000"]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    # Docker mounts a tmpfs with noexec unless told otherwise, and compiled programs are mapped from it.
    assert service["tmpfs"] == ["/tmp:exec,mode=1777"]
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"] == ["CMD", "python", "/opt/trtx/healthcheck.py"]
    assert re.fullmatch(r"\d+M", service["deploy"]["resources"]["reservations"]["memory"])
    assert "devices" not in service["deploy"]["resources"]["reservations"]


def test_an_engine_for_a_gpu_asks_compose_for_one(deploy: Deploy, engine: Path) -> None:
    card = json.loads((engine / "engine.json").read_bytes())
    card["compiled_for"] |= {"device": "cuda", "arch": "sm_90"}
    (engine / "engine.json").write_text(json.dumps(card))
    package = deploy()
    (service,) = yaml.safe_load((package / "compose.yaml").read_text())["services"].values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "--gpus all" in (package / "README.md").read_text()


def test_a_port_is_the_same_everywhere(deploy: Deploy) -> None:
    package = deploy(port=9123)
    (service,) = yaml.safe_load((package / "compose.yaml").read_text())["services"].values()
    assert service["ports"] == ["${TRTX_BIND:-127.0.0.1}:${TRTX_PORT:-9123}:9123"]
    assert ("EXPOSE", "9123") in instructions(package / "Dockerfile")
    body = json.loads((package / "deployment.json").read_bytes())
    assert body["port"] == 9123
    assert "8000" not in (package / "README.md").read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_out_of_the_dockerfile(deploy: Deploy, name: str) -> None:
    plain = instructions(deploy("plain") / "Dockerfile")
    hostile = deploy("hostile", name=name, cell=name)
    parsed = instructions(hostile / "Dockerfile")
    assert [head for head, _ in parsed] == [head for head, _ in plain]
    assert [entry for entry in parsed if entry[0] != "LABEL"] == [entry for entry in plain if entry[0] != "LABEL"]
    found = labels(hostile / "Dockerfile")
    assert found["org.opencontainers.image.title"] == re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", name).strip()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_out_of_the_compose_file(deploy: Deploy, name: str) -> None:
    plain = yaml.safe_load((deploy("plain") / "compose.yaml").read_text())
    hostile = yaml.safe_load((deploy("hostile", name=name, cell=name) / "compose.yaml").read_text())
    image = hostile["services"]["server"].pop("image")
    del plain["services"]["server"]["image"]
    assert hostile == plain
    assert re.fullmatch(r"trtx/[a-z0-9-]+:[a-z0-9-]+", image)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reaches_code_that_is_run(deploy: Deploy, name: str) -> None:
    plain, hostile = deploy("plain"), deploy("hostile", name=name, cell=name)
    for script in ("entrypoint.py", "healthcheck.py", "requirements.txt"):
        assert (hostile / script).read_bytes() == (plain / script).read_bytes()
    body = json.loads((hostile / "deployment.json").read_bytes())
    assert (body["name"], body["cell"]) == (name, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_out_of_the_readme(deploy: Deploy, name: str) -> None:
    plain = (deploy("plain") / "README.md").read_text().splitlines()
    hostile = (deploy("hostile", name=name, cell=name) / "README.md").read_text().splitlines()
    assert len(plain) == len(hostile)
    changed = [line for old, line in zip(plain, hostile, strict=True) if old != line]
    for line in changed:
        outside = re.sub(r"`[^`]*`|trtx/[a-z0-9-]+:[a-z0-9-]+", "", line)
        assert "<script>" not in outside
        assert "curl evil" not in outside
        assert "pwned" not in outside


@pytest.mark.parametrize("base", ["python", "python:latest", "python:3.12\nRUN touch /pwned"])
def test_a_base_that_is_not_pinned_makes_no_folder(deploy: Deploy, base: str, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem):
        deploy("never", base=base)
    assert not (tmp_path / "never").exists()


def test_a_link_among_the_weights_is_refused(deploy: Deploy, weights: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (weights / "tokenizer" / "added.json").symlink_to(secret)
    with pytest.raises(VerificationFailed, match=r"tokenizer/added\.json is not a plain file"):
        deploy()


def test_a_file_name_that_checksums_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("x")
    with pytest.raises(VerificationFailed, match="cannot be packaged"):
        make_sums(tmp_path)


def test_the_memory_of_the_kv_cache_is_set_by_size_or_by_fraction(deploy: Deploy) -> None:
    def options(folder: Path) -> list[str]:
        serve: list[str] = json.loads((folder / "deployment.json").read_bytes())["serve"]
        return serve

    assert "--kv-cache-size=1048576B" in options(deploy("size", kv_cache_bytes=2**20))
    assert "--memory-fraction=0.25" in options(deploy("fraction", kv_cache_bytes=None, memory_fraction=0.25))


def test_the_scheduling_of_the_recipe_is_the_one_it_is_served_with(deploy: Deploy) -> None:
    def options(folder: Path) -> set[str]:
        return set(json.loads((folder / "deployment.json").read_bytes())["serve"])

    both = {"--no-chunked-prefill", "--no-prefix-reuse"}
    assert not options(deploy("usual")) & both
    strict = SchedulerSettings("guaranteed-no-evict", chunked_prefill=False, prefix_reuse=False)
    assert {"--policy=guaranteed-no-evict", *both} <= options(deploy("strict", scheduler=strict))
