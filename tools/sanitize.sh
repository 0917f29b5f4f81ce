#!/usr/bin/env bash
# Build the kernels with the address and undefined-behaviour sanitizers and run the runtime's tests on them.
# Usage: tools/sanitize.sh [PYTHON]. Needs g++; takes about three minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for source in native/*.cpp; do
    case $source in
        *avx512*) flags=-mavx512f ;;
        *avx2*) flags="-mavx2 -mfma" ;;
        *) flags= ;;
    esac
    [ "$(uname -m)" = x86_64 ] || flags=
    # shellcheck disable=SC2086 # flags are words
    g++ -std=c++17 -O1 -g -fPIC -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=undefined $flags \
        -c "$source" -o "$folder/$(basename "$source").o"
done
g++ -shared -pthread -fsanitize=address,undefined "$folder"/*.o -o "$folder/native.so"
export HYDRAPRUNE_NATIVE=$folder/native.so ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
    "$python" -m pytest -q -p no:cacheprovider tests/runtime/test_session.py tests/runtime/test_hostile_networks.py
