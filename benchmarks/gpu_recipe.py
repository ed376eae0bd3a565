"""A whole recipe on a GPU by `trtx apply`, twice: how long each step takes, and how near the engine is to its model.

    python benchmarks/gpu_recipe.py --out recipe.json

The first apply makes everything in folders of its own; the second must find all of it. Beside the figures of the
build's check (backends/inductor/evidence.py), the tokens that the packaged engine generates are compared with the
choice of the same module, not compiled, after the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "llama-3-8b-h200.yaml"
# Greedy generation: sequences, tokens of each prompt, tokens generated.
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 48, 48
# What is shown of the log of a step that failed.
TAIL_LINES = 80


class ApplyFailed(Exception):
    """`trtx apply` ended with an error; the message has the log of the step."""


def make_environment(folder: Path) -> dict[str, str]:
    """This process's environment with caches and settings inside a folder."""
    names = {"XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data", "TRTX_CACHE_DIR": "trtx"}
    return {**os.environ, **{name: str(folder / place) for name, place in names.items()}}


def apply(folder: Path, environment: dict[str, str]) -> tuple[float, dict[str, Any]]:
    """Seconds and document of `trtx apply recipe.yaml`; its messages go to stderr as they come. Raises ApplyFailed."""
    command = [sys.executable, "-m", "trtx.cli", "apply", "recipe.yaml", "-o", "json"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise ApplyFailed(
            f"exit code {done.returncode} after {seconds:.0f} s\n{done.stdout[-4000:]}\n{read_logs(folder)}"
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return seconds, document


def read_logs(folder: Path) -> str:
    """The end of the newest log of a step."""
    logs = sorted((folder / ".trtx").glob("runs/**/log.txt"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return "no step has a log"
    lines = logs[-1].read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"end of {logs[-1].relative_to(folder)}:", *lines])


def describe_steps(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """State and seconds of every step."""
    return {row["step"]: {"state": row["state"], "seconds": row["duration_s"]} for row in document["status"]}


def read_summaries(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """What each step says of what it made, from the manifest of its entry."""
    from trtx.cache.store import Store

    store = Store(folder / "trtx")
    manifests = {row["step"]: store.peek(row["key"]) for row in document["status"]}
    return {step: manifest.summary for step, manifest in manifests.items() if manifest is not None}


def measure_agreement(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """How the packaged engine's greedy tokens and logits agree with the eager module over the same weights."""
    from trtx.backends.inductor.check import collect_logits, distance, generate_greedily, load_heldout
    from trtx.backends.inductor.evidence import CHECK_NAME, Evidence
    from trtx.backends.inductor.module import load_eager
    from trtx.cache.store import Store
    from trtx.runtime.folders import find_folders
    from trtx.runtime.program import load_programs

    (package,) = document["packages"].values()
    parts = find_folders(folder / package)
    evidence = Evidence.model_validate_json((parts.engine / CHECK_NAME).read_bytes())
    (calibrated,) = (row for row in document["status"] if row["stage"] == "calibrate")
    tokens = load_heldout(Store(folder / "trtx").output(calibrated["key"])).tokens
    num_blocks = 1 + NUM_PROMPTS * (PROMPT_TOKENS + NEW_TOKENS)
    programs = load_programs(parts.engine, parts.weights, num_blocks)
    answers = generate_greedily(programs, tokens[:NUM_PROMPTS, :PROMPT_TOKENS], NEW_TOKENS)
    found = collect_logits(programs, answers)
    expected = collect_logits(load_eager(parts.engine, parts.weights, num_blocks), answers)
    chosen = answers[:, PROMPT_TOKENS:]
    logits = expected[:, PROMPT_TOKENS - 1 : -1]
    behind = logits.amax(-1) - logits.gather(-1, chosen[..., None])[..., 0]
    return {
        "greedy_tokens": chosen.numel(),
        "greedy_agreeing": int((behind == 0).sum()),
        # Of the tokens that are not the eager module's choice, in standard deviations of its logits.
        "farthest_behind": round(float(behind.max() / logits.std()), 4),
        "logits_vs_eager": round(distance(found, expected), 5),
        "perplexity": evidence.perplexity,
        "reference_perplexity": evidence.reference_perplexity,
        "figures": evidence.figures,
        "tolerances": evidence.tolerances,
    }


def measure(recipe: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The figures as far as they are known: each time something is added, all of them."""
    shutil.copyfile(recipe, folder / "recipe.yaml")
    environment = make_environment(folder)
    first_s, document = apply(folder, environment)
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "first_s": round(first_s, 1),
        "steps": describe_steps(document),
        "summaries": read_summaries(folder, document),
    }
    for step, row in result["steps"].items():
        print(f"{step:20} {row['state']:10} {row['seconds']} s", flush=True)
    yield result
    second_s, again = apply(folder, environment)
    states = sorted({row["state"] for row in again["status"]})
    result |= {"second_s": round(second_s, 2), "second_states": states}
    print(
        f"first apply {first_s:.0f} s, second {second_s:.1f} s, which found its steps {', '.join(states)}", flush=True
    )
    yield result
    from gpu import describe_machine

    # Only now: to ask the GPU for its name takes some of its memory, which steps measure.
    result |= {"agreement": measure_agreement(folder, document), "machine": describe_machine()}
    print(f"agreement: {json.dumps(result['agreement'], indent=1)}", flush=True)
    yield result
    if states != ["cached"]:
        raise ApplyFailed(f"the second apply found steps {', '.join(states)}, and all should be cached")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe with one cell")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, which is kept; else a temporary one")
    options = parser.parse_args()
    result: dict[str, Any] = {}

    def write() -> None:
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="trtx-recipe-") as temporary:
        try:
            for found in measure(options.recipe.absolute(), (options.folder or Path(temporary)).absolute()):
                result = found
                write()
        except ApplyFailed as error:
            result["failed"] = str(error)
            write()
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
