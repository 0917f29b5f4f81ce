#!/usr/bin/env bash
# Make VENV with the pinned versions of constraints.txt. Says in one line what is missing; safe to run again.
set -uo pipefail
python=$1 venv=$2
fail() { echo "set-up stopped: $*" >&2; exit 2; }

command -v "$python" >/dev/null || fail "no '$python' on the PATH; install Python 3.11 or newer, or say 'make PYTHON=/path/to/python3.11 …'"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, '$python' is $("$python" --version 2>&1); say 'make PYTHON=/path/to/python3.11 …'"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "this Python has no venv module; on Debian: apt-get install python3-venv"
free_mb=$(df -Pm . | awk 'NR==2 {print $4}')
[ "$free_mb" -ge 3000 ] || fail "3000 MB of free disk are needed here, there are $free_mb"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! [ -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" 2>"$log" >&2 || fail "cannot make '$venv': $(tail -n 1 "$log")"
fi
echo "setting up $venv (a few minutes the first time)" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,onnx,tensorboard]' 2>"$log" >&2 ||
    fail "pip could not install the pinned versions: $(grep -i error "$log" | grep -v '^ *note:' | tail -n 1)"
"$venv/bin/python" -c 'from hydraprune.runtime import available_kernels as have; raise SystemExit(not have())' 2>/dev/null ||
    echo "no C++ compiler: the sparse runtime will take its slow path in NumPy; install g++ and run 'make clean' to mend it" >&2
touch "$venv/.ready"
