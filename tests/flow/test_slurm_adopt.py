"""A run that had ended before anybody attached to it is over for good."""

from __future__ import annotations

from support.slurm import wait_until
from support.slurm_site import Site


def test_after_a_failed_run_was_attached_to_the_next_apply_makes_a_new_one(site: Site) -> None:
    failing = site.steps.fail("calibrate/fp32")
    assert site.project.trtx("apply", "recipe.yaml", "--until", "convert", "--detach").returncode == 0
    wait_until(lambda: not site.jobs(), "all jobs have ended")
    assert site.project.trtx("attach").returncode == 1
    failing.unlink()
    done = site.project.trtx("apply", "recipe.yaml", "--until", "convert")
    assert done.returncode == 0, done.stderr
    assert "it is followed" not in done.stderr
    assert site.steps.counts()["convert/a100/fp32 finish"] == 1
    assert len(list(site.project.folder.glob(".trtx/runs/*"))) == 2
