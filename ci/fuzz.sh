#!/usr/bin/env bash
# ci/fuzz.sh SECONDS [TARGET...]: runs every fuzz target, or the named ones, for SECONDS each, and stops at the first
# that finds something. Needs a nightly toolchain and cargo-fuzz. Not part of .ci/run: the sanitised build alone takes
# minutes. What a target finds stays in fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: ci/fuzz.sh SECONDS [TARGET...]}
shift
if ! known=$(cargo +nightly fuzz list); then
    echo "nothing was run: \`rustup toolchain install nightly\` and \`cargo install cargo-fuzz\` first" >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    mapfile -t targets <<<"$known"
else
    targets=("$@")
fi

for target in "${targets[@]}"; do
    corpus=fuzz/corpus/$target
    mkdir -p "$corpus"
    inputs=("$corpus")
    if [ -d "fuzz/seeds/$target" ]; then inputs+=("fuzz/seeds/$target"); fi
    options=(-max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=1500 -print_final_stats=1)
    case $target in
        h1_* | hygiene) options+=(-dict=fuzz/http1.dict) ;;
        # Longer than the longest header that is waited for.
        proxy_protocol) options+=(-max_len=4400) ;;
    esac
    if [ "$target" = config ]; then inputs+=(config); fi
    log=$(mktemp)
    if ! cargo +nightly fuzz run "$target" "${inputs[@]}" -- "${options[@]}" >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "$target: failed; see fuzz/artifacts/$target"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: $runs runs in $seconds s, clean"
    rm -f "$log"
done
