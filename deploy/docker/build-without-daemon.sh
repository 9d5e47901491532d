#!/usr/bin/env bash
# Builds the image where there is no Docker and no registry: with Debian's buildah, without a daemon, on base images
# made here from debootstrap and the Rust toolchain that is installed.
#
#   deploy/docker/build-without-daemon.sh              # the published profile
#   PROFILE=release deploy/docker/build-without-daemon.sh
#
# Needs root (or a user namespace), buildah, debootstrap, git, cargo; a Debian mirror and the crates are fetched once.
# Environment: PROFILE (dist), TAG (bellwether), MIRROR and SUITE for debootstrap, WORK (a folder kept for next time).
# The build itself runs without network: the crates are vendored before.
set -euo pipefail
cd "$(dirname "$0")/../.."

PROFILE=${PROFILE:-dist}
TAG=${TAG:-bellwether}
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
WORK=${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/bellwether-image}
# chroot instead of containers, plain directories instead of overlays: works inside other containers.
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --storage-driver vfs "$@"; }

for tool in buildah debootstrap git cargo rustc; do
    command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 1; }
done
mkdir -p "$WORK"

if ! buildah images --quiet "localhost/bellwether-rust" >/dev/null 2>&1; then
    echo "--- base image: Debian $SUITE, a C compiler, $(rustc --version)"
    if [ ! -e "$WORK/rootfs/.complete" ]; then
        debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev "$SUITE" "$WORK/rootfs" "$MIRROR"
        rm -rf "$WORK"/rootfs/var/cache/apt/archives/*.deb
        touch "$WORK/rootfs/.complete"
    fi
    base=$(buildah from scratch)
    buildah add --quiet "$base" "$WORK/rootfs" /
    # Only what compiles: no documentation, no sources of the standard library.
    toolchain=$(rustc --print sysroot)
    buildah add --quiet "$base" "$toolchain/bin" /usr/local/rust/bin
    buildah add --quiet "$base" "$toolchain/lib" /usr/local/rust/lib
    buildah config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$base"
    buildah commit --quiet --rm "$base" localhost/bellwether-rust >/dev/null
fi

echo "--- sources: what is committed, with its crates"
context=$(mktemp -d "$WORK/context.XXXXXX")
trap 'rm -rf "$context"' EXIT
git archive HEAD | tar -x -C "$context"
mkdir -p "$context/.cargo"
cargo vendor --quiet --locked "$context/vendor" > "$context/vendor.toml"
# Whatever mirror the crates came from, in there they come from the folder.
cat > "$context/.cargo/config.toml" <<'TOML'
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "vendor"
[net]
offline = true
TOML

echo "--- image, profile $PROFILE"
# The health check is a field of Docker's own format, which OCI's lacks.
buildah bud --format docker --network none --pull-never \
    --build-arg RUST_IMAGE=localhost/bellwether-rust --build-arg PROFILE="$PROFILE" --tag "$TAG" "$context"

echo "--- the image's own binary"
container=$(buildah from --pull-never "$TAG")
trap 'buildah rm "$container" >/dev/null; rm -rf "$context"' EXIT
buildah run "$container" -- /bellwether --version
cat > "$context/bellwether.yaml" <<'YAML'
listeners:
  web: ":8080"
routes:
  - cluster: app
clusters:
  app: { endpoints: [127.0.0.1:9001] }
YAML
buildah copy --quiet "$container" "$context/bellwether.yaml" /etc/bellwether/bellwether.yaml >/dev/null
buildah run "$container" -- /bellwether check -c /etc/bellwether/bellwether.yaml

root=$(buildah mount "$container")
size=$(du -sb "$root" | cut -f1)
echo "--- $TAG: $((size / 1024 / 1024)) MiB ($size bytes), user $(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")"
if [ "$size" -ge $((40 * 1024 * 1024)) ]; then
    echo "the image is larger than 40 MiB" >&2
    exit 1
fi
