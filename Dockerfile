# The gateway alone, without a shell, as a user without rights: about 30 MB.
FROM rust:1.90-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Dependencies first, so that a change of ours does not build them again.
RUN mkdir -p src benches && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && for bench in ask page pick scrape_cost; do echo 'fn main() {}' > benches/$bench.rs; done \
    && cargo build --release --locked && rm -rf src
COPY src src
COPY config config
COPY tests/fixtures/traces tests/fixtures/traces
RUN touch src/main.rs src/lib.rs && cargo build --release --locked && strip target/release/tidegate

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/tidegate /usr/local/bin/tidegate
USER nonroot
EXPOSE 8081 9090 9091
ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["serve", "--config", "/etc/tidegate/gateway.yaml"]
