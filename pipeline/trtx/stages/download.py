"""The download step: a model's files from its source."""

from __future__ import annotations

import os
from typing import Any

from trtx.files import walk_files
from trtx.models.sources.base import Request, find_source
from trtx.stages.base import StepContext
from trtx.stages.params import DownloadParams


def run(params: DownloadParams, context: StepContext) -> dict[str, Any]:
    """Fetch exactly the files of the planned identity."""
    request = Request(params.url, "model", allow_pickle=params.allow_pickle, environ=os.environ)
    context.say(f"fetching {params.url} ({params.identity})")
    find_source(params.url).fetch(request, params.identity, context.output, context.progress)
    sizes = [path.stat().st_size for path in walk_files(context.output)]
    context.say(f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
    return {"files": len(sizes), "bytes": sum(sizes)}
