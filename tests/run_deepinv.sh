#!/usr/bin/env bash
# Tests of the deepinv adapters against deepinv itself, in an environment of their own: deepinv imports torchvision,
# whose wheels fit one release of torch each. Takes several GB of disk; needs the network, or wheels that pip can find.
#
#   bash tests/run_deepinv.sh [FOLDER]     FOLDER: where to make the environment, or to find one from before;
#                                          without it one is made in a temporary folder and deleted at the end
set -euo pipefail
[ $# -eq 0 ] || folder="$(realpath -m "$1")"
cd "$(dirname "$0")/.."
: "${TORCH:=torch==2.14.1 torchvision==0.29.1}"

if [ $# -eq 0 ]; then
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
fi
if ! "$folder/bin/python" -c 'import deepinv, pytest, ssdcore' 2>/dev/null; then  # none yet, or an unfinished one
    python3 -m venv "$folder"
    # shellcheck disable=SC2086 - two requirements
    "$folder/bin/pip" install --quiet $TORCH "deepinv>=0.3" "pytest>=8.0" -e ".[torch]"
fi
"$folder/bin/python" -c 'import deepinv, torch, torchvision as tv; print("deepinv", deepinv.__version__, "torch", torch.__version__, "torchvision", tv.__version__)'
"$folder/bin/python" -m pytest tests/test_interop_deepinv.py -rs
