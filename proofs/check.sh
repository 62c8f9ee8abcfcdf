#!/usr/bin/env bash
# Builds the proofs afresh, looks for gaps in them, and prints what each theorem rests on: bash proofs/check.sh
set -euo pipefail
cd "$(dirname "$0")"

if grep -nEi 'admit|axiom|abort' ./*.v; then
    echo "proofs: a word of an unfinished proof stands in the lines above" >&2
    exit 1
fi
theorems="$(grep -ohE '^(Theorem|Corollary) \w+' ./*.v | awk '{print $2}' | sort)"
printed="$(awk '/^Print Assumptions/ {sub(/\.$/, "", $3); print $3}' assumptions.v | sort)"
if [ "$theorems" != "$printed" ]; then
    echo "proofs: assumptions.v does not print just the theorems and corollaries there are:" >&2
    diff <(echo "$theorems") <(echo "$printed") >&2
    exit 1
fi

if ! command -v coqc >/dev/null; then
    echo "skipped: coqc not installed"
    exit 0
fi
if ! [ -d "$(coqc -where)/user-contrib/mathcomp/algebra" ]; then
    echo "skipped: Mathematical Components (algebra) not installed"
    exit 0
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cp ./*.v Makefile "$folder"
make -s -C "$folder" all
make -s -C "$folder" assumptions >"$folder/said" # one answer a theorem, in the order of assumptions.v
closed="$(grep -c '^Closed under the global context$' "$folder/said" || true)"
if [ "$closed" != "$(wc -l <<<"$printed")" ] || grep -q '^Axioms:' "$folder/said"; then
    cat "$folder/said" >&2
    echo "proofs: a theorem rests on something that is not proved" >&2
    exit 1
fi
awk '/^Print Assumptions/ {sub(/\.$/, "", $3); print $3 ": closed under the global context"}' assumptions.v
echo "proofs: $closed theorems, all closed"
