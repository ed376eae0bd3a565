#!/usr/bin/env bash
# What needs several GPUs, on a machine with them: the tests of ranks, and how engines scale, in one call of 10 minutes at most.
#   tests/gpu/run_ranks.sh RESULT.json
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/pipeline:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
status=0
timeout 250 python3 -m pytest tests/gpu/test_ranks.py -q -s -p no:cacheprovider -o filterwarnings=default || status=$?
timeout 330 python3 benchmarks/gpu_ranks.py --minutes 4 --out "${1:?name the file for the figures}" || status=$?
exit "$status"
