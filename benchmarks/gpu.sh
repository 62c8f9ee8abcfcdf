#!/usr/bin/env bash
# benchmarks/gpu.py on a bare machine with PyTorch: OUT=FOLDER bash benchmarks/gpu.sh [options of gpu.py]
# Installs the wheels in .whl/, if there are any, into a temporary folder. What was compiled is left in
# FOLDER/compiled.tar.gz, if it is small; put it into .whl/, and the next machine need not compile it again.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-gpu-results}"
work="$(mktemp -d)"
mkdir -p "$out" "$work/site" "$work/compiled"
if compgen -G ".whl/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" .whl/*.whl
fi
if [ -f .whl/compiled.tar.gz ]; then tar -xzf .whl/compiled.tar.gz -C "$work/compiled"; fi
export PYTHONPATH="$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="$work/compiled"
status=0
python3 benchmarks/gpu.py --out "$out" "$@" || status=$?
kept=()
for part in fxgraph aotautograd; do [ ! -d "$work/compiled/$part" ] || kept+=("$part"); done
if [ ${#kept[@]} -gt 0 ]; then
    tar -czf "$work/compiled.tar.gz" -C "$work/compiled" "${kept[@]}"
    if [ "$(stat -c %s "$work/compiled.tar.gz")" -lt 16000000 ]; then cp "$work/compiled.tar.gz" "$out/"; fi
fi
exit $status
