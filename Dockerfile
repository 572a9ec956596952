# syntax=docker/dockerfile:1

# The image of `sgp webhook` and `sgp allocator`. docs/install.md says how to build it, for which
# platforms, and how it was checked.

# Both stages are Debian 12, so that the C library is not older where the program runs than
# where it was linked.
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-bookworm AS build
ARG TARGETPLATFORM
WORKDIR /src
COPY . .
# The folder target is a cache that no layer keeps, hence the copy. Each platform has its own.
RUN --mount=type=cache,id=sgp-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=sgp-target-${TARGETPLATFORM},target=/src/target,sharing=locked \
    cargo build --release --locked --bin sgp \
    && cp target/release/sgp /sgp

# Has libc, libm and libgcc_s, which is all that the program links to; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /sgp /sgp
# By number, because a kubelet can't tell from a name that it is not root.
USER 65532:65532
# The webhook's admission and probes, with TLS; the metrics of webhook and allocator, where
# the manifests' --metrics-listen has them.
EXPOSE 9443 8080 8081
ENTRYPOINT ["/sgp"]
CMD ["webhook"]
