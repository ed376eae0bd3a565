"""`python -m trtx.cli` is `trtx`."""

from trtx.cli.main import run

run()
