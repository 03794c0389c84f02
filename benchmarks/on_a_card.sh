#!/usr/bin/env bash
# Everything that waits for a GPU, on one that is lent for a quarter of an hour: the figures with goals, then the tests.
#
#     benchmarks/on_a_card.sh [FOLDER]
#
# Run from the root of the repository. FOLDER (default: gpu-results) gets gpu.json, gpu.txt and tests.txt as they come.
# PYTHON names the interpreter. If there is a folder `wheels`, what is in it is installed first, from there alone;
# benchmarks/README.md says what an image with little but torch lacks.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
folder=${1:-gpu-results}
mkdir -p "$folder"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

if [ -d wheels ]; then
    timeout 60 "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
# 6 minutes at most by its own clock; half a minute more, should it hang where it cannot end itself.
timeout --kill-after=5 390 "$python" benchmarks/gpu.py --json "$folder/gpu.json" 2>&1 | tee "$folder/gpu.txt"
figures=${PIPESTATUS[0]}
# 6.5 minutes; what hangs costs 2 of them and no more.
timeout --kill-after=5 390 "$python" -m pytest tests/gpu -v --timeout 120 -p no:cacheprovider 2>&1 | tee "$folder/tests.txt"
tests=${PIPESTATUS[0]}
echo "gpu.py ended with $figures, the tests with $tests; results are in $folder"
[ "$figures" -eq 0 ] && [ "$tests" -eq 0 ]
