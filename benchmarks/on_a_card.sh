#!/usr/bin/env bash
# Everything that waits for a GPU, in ten minutes at most: do decode steps capture at all, then the figures with goals,
# then all tests.
#
#     benchmarks/on_a_card.sh [FOLDER]
#
# Run from the root of the repository. FOLDER (default: gpu-results) gets gpu.json, gpu.txt, graphs.txt and tests.txt as
# they come. PYTHON names the interpreter. If there is a folder `wheels`, what is in it is installed first, from there
# alone; benchmarks/README.md says what an image with little but torch lacks.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-$(command -v python || command -v python3)}
folder=${1:-gpu-results}
limit=590 # seconds, all in all
mkdir -p "$folder"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# run SECONDS FILE COMMAND...: shows and keeps what a command says; it ends in time.
run() {
    local seconds=$1 file=$folder/$2
    shift 2
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$file"
    return "${PIPESTATUS[0]}"
}

if [ -d wheels ]; then
    timeout 40 "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
# Figures of steps that are not captured would be those of before.
run 75 graphs.txt "$python" -m pytest tests/gpu/test_graphs.py -x -q -p no:cacheprovider
graphs=$?
# Under 6 minutes by its own clock; a little more, should it hang where it cannot end itself.
run 375 gpu.txt "$python" benchmarks/gpu.py --json "$folder/gpu.json"
figures=$?
left=$((limit - SECONDS))
run $((left > 30 ? left : 30)) tests.txt "$python" -m pytest tests/gpu -v --timeout 60 -p no:cacheprovider
tests=$?
echo "tests of graphs ended with $graphs, gpu.py with $figures, all tests with $tests (124: out of time); see $folder"
[ "$graphs" -eq 0 ] && [ "$figures" -eq 0 ] && [ "$tests" -eq 0 ]
