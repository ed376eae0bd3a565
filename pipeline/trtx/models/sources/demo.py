"""demo://: a small model trained on the spot and its corpus. Every Python has what they are made from.

`demo://tiny-llama` is a model, `demo://docs` a dataset with the splits `train` and `validation`.
"""

from __future__ import annotations

from pathlib import Path

from trtx.models.demo import config
from trtx.models.sources.base import Progress, Request, Resolved, check_identity, unknown_name

NAMES = {"model": config.MODEL_NAME, "dataset": config.CORPUS_NAME}


def resolve(request: Request) -> Resolved:
    """Pin a generated model or corpus; costs no more than reading the Python version."""
    name = request.url.removeprefix("demo://").strip("/")
    known = NAMES[request.kind]
    if name != known:
        raise unknown_name(f"demo {request.kind}", name, [known])
    if request.kind == "dataset":
        if request.split not in (None, *config.CORPUS_SPLITS):
            raise unknown_name("split of demo://docs", str(request.split), list(config.CORPUS_SPLITS))
        return Resolved(request.url, config.corpus_identity(), {})
    demo = config.DemoConfig()
    return Resolved(request.url, config.model_identity(demo), config.make_hf_config(demo), config.TOOLCHAIN)


def is_at_hand(request: Request, identity: str) -> bool:
    """Always."""
    return True


def fetch(request: Request, identity: str, output: Path, progress: Progress) -> None:
    """Train the model, or write the corpus, into `output`."""
    check_identity(request, identity, resolve(request).identity, "Python and trtx")
    if request.kind == "dataset":
        from trtx.models.demo.corpus import write_corpus

        write_corpus(output)
    else:
        from trtx.models.demo.train import train_model

        train_model(config.DemoConfig(), output, progress)
