"""The finder and checker of shell blocks itself: it must notice what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shell_blocks import find_blocks, problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text("VENV := .venv\ndemo: compiler ## Build\n\ttrue\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.yaml").write_text("")
    return tmp_path


def found(tree: Path, commands: str) -> list[str]:
    (block,) = find_blocks("README.md", f"```sh\n{commands}\n```\n")
    return [problem.rpartition(": ")[2] for problem in problems(block, tree)]


@pytest.mark.parametrize(
    "commands",
    [
        "make demo",
        "trtx apply recipes/quickstart.yaml",
        ".venv/bin/trtx apply recipes/quickstart.yaml:cpu/int8 --offline -v  # comment",
        "TRTX_CACHE_DIR=/tmp/x trtx plan recipes/quickstart.yaml -o json | python3 -m json.tool > plan.json",
        "cd somewhere && docker compose up --build",
        "curl http://127.0.0.1:8000/health \\\n  -H 'A: b'",
        "trtx --help",
        "cat > a.yaml <<'EOF'\nno-such-program: x\nEOF\ntrtx --help",
    ],
)
def test_commands_that_exist_have_no_problems(tree: Path, commands: str) -> None:
    assert found(tree, commands) == []


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        ("make dmo", "the Makefile has no target dmo"),
        ("trtx aply recipes/quickstart.yaml", "trtx has no verb aply"),
        ("true && trtx apply --ofline recipes/quickstart.yaml", "trtx apply has no option --ofline"),
        ("trtx apply recipes/quickstrt.yaml", "there is no recipes/quickstrt.yaml"),
        ("echo x | no-such-program-anywhere", "there is no such program"),
        (".venv/bin/no-such-program", "there is no such program"),
        ("cat > a.yaml <<'EOF'\nname: x\nEOF\ntrtx aply", "trtx has no verb aply"),
    ],
)
def test_what_does_not_exist_is_named(tree: Path, commands: str, problem: str) -> None:
    assert found(tree, commands) == [problem]


def test_only_shell_blocks_are_commands_and_markers_say_what_to_do_with_them() -> None:
    text = "```yaml\na: b\n```\n\n<!-- test: run -->\n```sh\nmake demo\n```\n"
    text += "<!-- test: skip: slow -->\n\n```bash\nx\n```\n"
    blocks = find_blocks("README.md", text)
    assert [(block.line, block.kind, block.reason, block.text) for block in blocks] == [
        (7, "run", "", "make demo"),
        (12, "skip", "slow", "x"),
    ]


def test_a_console_block_runs_its_prompts_and_not_its_output() -> None:
    (block,) = find_blocks("README.md", "```console\n$ trtx --version\ntrtx 0.1.0\n$ make demo\n```\n")
    assert block.script == "trtx --version\nmake demo\n"


@pytest.mark.parametrize("text", ["<!-- test: run -->\nwords\n", "<!-- test: run -->\n```yaml\na: b\n```\n"])
def test_a_marker_without_a_block_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="test marker"):
        find_blocks("README.md", text)
