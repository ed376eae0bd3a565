"""The place of `trtx cache` among the verbs; its own verbs are imported when one of them is asked for."""

from __future__ import annotations

import functools
import sys
from typing import Any, cast

import typer
from typer.core import TyperGroup

from trtx.console import silence_stdout
from trtx.errors import Interrupted


class CacheGroup(TyperGroup):
    """Stands in for `trtx.cli.cache.app`, so that `trtx --help` need not read it."""

    @functools.cached_property
    def _verbs(self) -> TyperGroup:
        from trtx.cli.cache import app

        return cast(TyperGroup, typer.main.get_command(app))

    def list_commands(self, ctx: Any) -> list[str]:
        return self._verbs.list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._verbs.get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None
        except BrokenPipeError:
            silence_stdout()


app = typer.Typer(
    cls=CacheGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _describe() -> None:
    """Look at the cache, check it, keep it small, carry it elsewhere."""
