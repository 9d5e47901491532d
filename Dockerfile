# The proxy alone in an image: the binary, the C library it needs, certificate authorities. No shell, no packages.
#
#   docker build -t bellwether .
#   docker run --rm -p 8080:8080 -v "$PWD/conf:/etc/bellwether:ro" bellwether     # conf/bellwether.yaml listens on ":8080"
#
# The base images are arguments, so that a mirror or images made by hand serve too; deploy/docker/build-without-daemon.sh
# builds this file without Docker.
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${RUST_IMAGE} AS build
# `dist` is what is published; `release` is built several times faster and a little slower at work.
ARG PROFILE=dist
WORKDIR /src
COPY . .
RUN cargo build --profile "${PROFILE}" --locked --bin bellwether \
 && mkdir -p /image/etc/bellwether /image/etc/ssl/certs /image/tmp /image/run/bellwether \
 && install -m 755 "target/${PROFILE}/bellwether" /image/bellwether \
 && strip --strip-all /image/bellwether \
 # What the binary loads, at the places where it looks for it; the loader prints both.
 && ldd /image/bellwether | grep -o '/[^ ]*' | sort -u | while read -r library; do \
      install -D -m 755 "$(readlink -f "$library")" "/image$library"; done \
 # Names are resolved by these, which no binary names: the C library opens them when asked.
 && for name in libnss_dns.so.2 libnss_files.so.2 libresolv.so.2; do \
      library=$(ldconfig -p | awk -v n="$name" '$1 == n { print $NF; exit }'); \
      if [ -n "$library" ]; then install -D -m 755 "$(readlink -f "$library")" "/image$library"; fi; done \
 && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
 && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
 && echo 'bellwether:x:65532:65532::/:/bellwether' > /image/etc/passwd \
 && echo 'bellwether:x:65532:' > /image/etc/group \
 && chmod 1777 /image/tmp && chown -R 65532:65532 /image/run/bellwether

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
EXPOSE 8080 9900
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/bellwether", "wait", "--timeout", "1s"]
ENTRYPOINT ["/bellwether"]
CMD ["run"]
