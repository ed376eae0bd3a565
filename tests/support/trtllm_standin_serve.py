"""The stand-in for trtllm-serve: it checks what it is given and answers questions about itself, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from support.trtllm_standin_bench import open_model
from support.trtllm_standins import Wrong

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.schema_check import check_schema

ITERATION = {
    "iter": 7,
    "iterLatencyMS": 12.5,
    "numActiveRequests": 3,
    "numQueuedRequests": 1,
    "gpuMemUsage": 0,
    "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 25, "cacheHitRate": 0.5},
}
PROMETHEUS = """# HELP trtllm_request_success_total Count of requests
# TYPE trtllm_request_success_total counter
trtllm_request_success_total{model_name="stand-in",engine_type="trtllm",finished_reason="length"} 4.0
trtllm_request_success_total{model_name="stand-in",engine_type="trtllm",finished_reason="stop"} 2.0
trtllm_time_to_first_token_seconds_bucket{model_name="stand-in",le="0.1"} 3.0
trtllm_time_to_first_token_seconds_bucket{model_name="stand-in",le="0.5"} 6.0
trtllm_time_to_first_token_seconds_bucket{model_name="stand-in",le="+Inf"} 6.0
trtllm_time_to_first_token_seconds_count{model_name="stand-in"} 6.0
trtllm_time_to_first_token_seconds_sum{model_name="stand-in"} 0.9
python_info{version="3"} 1.0
"""


def run_serve(release: Release, values: Mapping[str, Any]) -> None:
    backend = values.get("backend") or "tensorrt"
    open_model(release, {"backend": backend, "model": values["model"], "engine_dir": values["model"]})
    if not (Path(values["tokenizer"]) / "tokenizer_config.json").is_file():
        raise Wrong(f"OSError: Can't load tokenizer for '{values['tokenizer']}'")
    if file := values.get("extra_llm_api_options"):
        options = yaml.safe_load(Path(file).read_text())
        schema = "TorchLlmArgs" if backend == "pytorch" else "TrtLlmArgs"
        wrong = [str(found) for found in check_schema(release, schema, {"model": "", **options}) if not found.doubt]
        if wrong:
            raise Wrong(f"pydantic_core.ValidationError: {'; '.join(wrong)}")
    answers = {
        "/health": ("text/plain", "ok"),
        "/version": ("application/json", json.dumps({"version": f"{release.version} (stand-in)"})),
        "/v1/models": ("application/json", json.dumps({"data": [{"id": "stand-in"}]})),
        "/metrics": ("application/json", json.dumps([ITERATION])),
        "/prometheus/metrics": ("text/plain", PROMETHEUS),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = answers.get(self.path, ("text/plain", ""))
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((values["host"], values["port"]), Handler)
    print(f"listening on {server.server_address[1]}", flush=True)
    server.serve_forever()
