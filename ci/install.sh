#!/usr/bin/env bash
# Installs what the tests need and is not here yet. Nothing that is here is touched, nothing is left running.
#
# Required: a Rust toolchain with rustfmt and clippy, and a C compiler (TLS). Wanted by some tests: nginx, curl.
# Optional: cargo-nextest, used where it is present; cargo-deny, built here within ten minutes or left out.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n--- %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# The packages' own start scripts ask this file whether they may; without it Debian would start nginx as a service.
install_packages() {
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! have sudo || ! sudo -n true 2>/dev/null; then
            echo "not allowed to install: $*; the tests that need them will say so"
            return
        fi
        sudo=(sudo -n)
    fi
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
        made=yes
    fi
    "${sudo[@]}" apt-get update -qq || true
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" || true
    if [ -n "$made" ]; then "${sudo[@]}" rm -f "$policy"; fi
}

say "packages"
missing=()
have cc || missing+=(gcc libc6-dev)
have curl || missing+=(curl ca-certificates)
have nginx || [ -x /usr/sbin/nginx ] || missing+=(nginx)
if [ "${#missing[@]}" -eq 0 ]; then
    echo "nothing is missing"
elif have apt-get; then
    echo "installing: ${missing[*]}"
    install_packages "${missing[@]}"
else
    echo "please install: ${missing[*]}"
fi

say "rust"
if ! have cargo; then
    echo "cargo is not here; see https://rustup.rs" >&2
    exit 1
fi
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
rustc --version

say "cargo-deny"
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --version
elif [ "${BELLWETHER_CI_DENY:-yes}" = yes ]; then
    # A debug build is made in a third of the time, and what it reads here is small.
    timeout 600 cargo install --quiet --locked --debug cargo-deny || echo "could not be built; its checks are left out"
fi
