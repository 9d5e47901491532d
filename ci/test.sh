#!/usr/bin/env bash
# The test command: formatting, lints, supply chain, documentation, examples, and every test.
# Stops at the first step that fails. The last lines are the test runner's own.
set -euo pipefail
cd "$(dirname "$0")/.."

# Nothing is built twice here, and the incremental caches would be a third of the disk space.
export CARGO_INCREMENTAL=0
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-always}"

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }
have() { cargo "$1" --version >/dev/null 2>&1; }

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "supply chain"
if have deny; then
    cargo deny --all-features check licenses bans sources
    # The database may be out of reach, which says nothing about this code.
    if cargo deny fetch db >/dev/null 2>&1; then
        cargo deny --all-features check --disable-fetch advisories
    else
        echo "the advisory database cannot be reached: left out"
    fi
else
    echo "cargo-deny is not installed: left out"
fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

step "examples"
cargo build --locked --bin bellwether
# The files for later versions may say "not supported by this version" (E0610), and nothing else. Certificates (E0601)
# and secrets (E0310) of the examples are placeholders.
for file in config/*.yaml; do
    if said=$(NO_COLOR=1 target/debug/bellwether check -c "$file" 2>&1); then
        echo "$file: valid"
    elif other=$(grep -E '^error' <<<"$said" | grep -vE '^error\[E(0610|0601|0310)\]'); then
        printf '%s\n' "$said"
        echo "$file: $other" >&2
        exit 1
    else
        echo "$file: valid, but for what this version does not support or find"
    fi
done

step "fuzz targets compile"
cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

step "tests"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if have nextest; then
    CARGO_TERM_COLOR=never cargo nextest run --workspace --locked --no-fail-fast 2>&1 | tee "$log"
else
    CARGO_TERM_COLOR=never cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
fi

step "done"
grep -E '^ *(Summary|test result:)' "$log"
