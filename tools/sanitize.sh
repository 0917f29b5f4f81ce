#!/usr/bin/env bash
# Build the kernels with the address and undefined-behaviour sanitizers and run the tests that suit them.
# Usage: tools/sanitize.sh PYTHON [PYTEST ARGUMENT …]. Needs g++; takes about a minute. Part of CI as a test.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
[ $# -gt 0 ] || set -- -m "not slow" tests/runtime/test_{session,any_network,gradient,hostile_networks}.py
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
        -c "$source" -o "$folder/$(basename "$source").o" &
done
wait
[ "$(ls "$folder" | wc -l)" = "$(ls native/*.cpp | wc -l)" ] || exit 1
g++ -shared -pthread -fsanitize=address,undefined "$folder"/*.o -o "$folder/native.so"
export HYDRAPRUNE_NATIVE=$folder/native.so PYTHONPATH=$PWD/src OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
    "$python" -m pytest -q -p no:cacheprovider -p no:xdist "$@"
