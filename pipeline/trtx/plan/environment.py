"""The environment of a step: what is set, what is passed on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

# Passed on from the driver when set there: how to find programs, homes, proxies, certificates and devices.
ALWAYS = (
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TRTX_TRTLLM_ROOT",
    "TZ",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
)
# Only steps that fetch may see the network settings and tokens.
FETCHING = (
    "ALL_PROXY",
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "TRTX_OFFLINE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
FETCHING_STAGES = ("download", "dataset")
MEASURING_STAGES = ("benchmark",)


def make_environment(stage: str, threads: int) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables to set, and names to inherit, for a step of a stage that may use `threads` threads."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if stage not in MEASURING_STAGES:
        # Threads that wait sleep: spinning, they slow two steps at once, or a step beside a busy neighbour, 50-fold.
        # What is measured has the machine to itself, and spins as a server does.
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    if stage in FETCHING_STAGES:
        return settings, tuple(sorted(ALWAYS + FETCHING))
    return settings | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}, ALWAYS


def fill_environment(
    settings: Mapping[str, str], inherit: tuple[str, ...], environ: Mapping[str, str]
) -> dict[str, str]:
    """The complete environment of a process; `settings` win over inherited values."""
    return {name: environ[name] for name in inherit if name in environ} | dict(settings)
