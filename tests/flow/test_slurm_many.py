"""Many cells are one array: one sbatch, a throttle that holds, each runs once. For a thousand: slurm/test_many.py."""

from __future__ import annotations

from collections.abc import Callable

from support.slurm_site import Ground, write_recipe
from support.slurm_table import PROPERTY, make_row

CELLS, THROTTLE = 100, 20
UNTIL = ("--until", "calibrate")


def test_a_hundred_cells_are_one_array_with_a_throttle(
    ground: Ground, record_property: Callable[[str, object], None]
) -> None:
    texts = {"dataset": f"file://{ground.fetched}/texts.txt", "samples": 4, "heldout": 2, "max_length": 8}
    int8 = {"algorithm": "int8_sq", "calibration": texts}
    variants = {f"v{number}": {**int8, "exclude": ["lm_head", f"layer-{number}"]} for number in range(CELLS)}
    site = ground.site()
    write_recipe(site.project, ground.fetched, site.steps, {"throttle": THROTTLE}, quantization=variants)
    site.steps.sleep(0.5)
    done = site.project.trtx("apply", "recipe.yaml:h100/*", *UNTIL)
    end = site.end("calibrate/v0", done.returncode)
    record_property(PROPERTY, make_row(f"{CELLS} cells in an array, {THROTTLE} at once", end))
    assert (end.state, end.exit_code, end.steps, end.starts, end.finishes) == ("done", 0, CELLS, 1, 1)
    assert len(site.submitted()) == 1
    running = most = 0
    for line in (site.steps.folder / "record").read_text().splitlines():
        running += 1 if line.endswith(" start") else -1
        most = max(most, running)
    assert 1 < most <= THROTTLE
