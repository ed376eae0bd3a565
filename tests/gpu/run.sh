#!/usr/bin/env bash
# All that needs a GPU, on a machine with one: the tests and the benchmark, in one call of at most 9 minutes.
#   tests/gpu/run.sh RESULT.json
# tests/gpu/test_rebuild.py builds an engine three times, and is for a call of its own:
#   PYTHONPATH=pipeline:tests python3 -m pytest tests/gpu/test_rebuild.py -q -p no:cacheprovider -o filterwarnings=default
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/pipeline:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
status=0
timeout 260 python3 -m pytest tests/gpu --ignore tests/gpu/test_rebuild.py -q -p no:cacheprovider -o filterwarnings=default || status=$?
timeout 280 python3 benchmarks/gpu.py --out "${1:?name the file for the figures}"
exit "$status"
