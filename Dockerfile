# The daemon alone, on an image without a shell or a package manager, as uid 65532.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" -t pglockstep .

FROM rust:1-bookworm AS build
WORKDIR /build

# Dependencies first: this layer is rebuilt only when they change. The manifest names a
# library, a program and a test, so each gets an empty stand-in.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src tests \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs tests/main.rs > /dev/null \
    && cargo build --release --locked \
    && rm -r src

ARG REVISION=unknown
ENV PGLOCKSTEP_REVISION=${REVISION}
COPY src src
# Sources may be older than the stand-ins' build: their time must not decide.
RUN find src -type f -exec touch {} + \
    && cargo build --release --locked --bin pglockstep

FROM gcr.io/distroless/cc-debian12:nonroot
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pglockstep" \
      org.opencontainers.image.description="Keeps a replica PostgreSQL database in lockstep with a master one, and proves it" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /build/target/release/pglockstep /usr/local/bin/pglockstep

USER 65532:65532
EXPOSE 9808
STOPSIGNAL SIGTERM
# Asks the daemon through its own endpoint; red as soon as the stream is not well.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/pglockstep", "status"]
ENTRYPOINT ["/usr/local/bin/pglockstep"]
CMD ["--log-format", "json", "run"]
