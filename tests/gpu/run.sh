#!/usr/bin/env bash
# What needs a GPU, on a machine with one; all figures go into one file.
#   tests/gpu/run.sh RESULT.json [tests|rebuild|recipe|benchmark ...]
# Without names all parts but the rebuild run, one after another, so that none disturbs what another measures. Each has a time limit and
# a failure of its own, and all of them end after TOTAL_S seconds: 540 where nothing else is said. By what the parts took apart
# (tests about 250 s on a machine of their own, recipe 294 s, benchmark 297 s) that is about what tests and one other take.
set -uo pipefail
: "${1:?name the file for the figures}"
result=$(realpath "$1")
shift
cd "$(dirname "$0")/../.." || exit 2
export PYTHONPATH="$PWD/pipeline:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
total=${TOTAL_S:-540}
figures=$(mktemp -d)

# Caches are read-only, and a part that was stopped leaves its own behind.
clean() { chmod -R u+w "$1" 2> /dev/null; rm -rf "$1"; }
trap 'clean "$figures"' EXIT
failed=0

# run NAME LIMIT_S COMMAND...: run a part, note its seconds and its exit status, and write what is known so far.
run() {
  local name=$1 limit=$2 left=$((total - SECONDS)) began=$SECONDS status=0
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  mkdir "$figures/tmp"
  if [ "$limit" -lt 30 ]; then
    echo "== $name: no time left of $total s"
    status=124
  else
    echo "== $name, at most $limit s"
    TMPDIR="$figures/tmp" timeout -k 15 "$limit" "$@" || status=$?
    echo "== $name ended with status $status after $((SECONDS - began)) s"
  fi
  clean "$figures/tmp"
  echo "$name $((SECONDS - began)) $status" >> "$figures/parts"
  python3 tests/gpu/collect.py "$figures" "$result" || failed=1
  [ "$status" -eq 0 ] || failed=1
}

[ "$#" -gt 0 ] || set -- tests recipe benchmark
for name in "$@"; do
  case $name in
    tests)
      run tests 280 python3 -m pytest tests/gpu --ignore tests/gpu/test_rebuild.py -q -p no:cacheprovider -o filterwarnings=default \
        --junitxml "$figures/tests.xml" ;;
    rebuild) run rebuild 360 python3 -m pytest tests/gpu/test_rebuild.py -q -s -p no:cacheprovider -o filterwarnings=default ;;
    recipe) run recipe 420 python3 benchmarks/gpu_recipe.py --out "$figures/recipe.json" ;;
    benchmark) run benchmark 320 python3 benchmarks/gpu.py --out "$figures/benchmark.json" ;;
    *) echo "there is no part $name; there are tests, rebuild, recipe and benchmark" >&2; exit 2 ;;
  esac
done
exit "$failed"
