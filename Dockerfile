# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake curl libssl-dev pkg-config unzip zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
    DUCKDB_LIB_DIR=/duckdb tools/duckdb \
 && DUCKDB_LIB_DIR=/duckdb CARGO_TARGET_DIR=/target cargo build --locked --profile dist --bin karrow \
 && install -D /target/dist/karrow /out/bin/karrow \
 && install -D -m 644 -t /out/lib /duckdb/libduckdb_java*

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 6380 --home-dir /var/lib/karrow --create-home karrow
# DuckDB's library is where the program looks for it: in ../lib.
COPY --from=build /out/ /usr/local/
USER karrow
WORKDIR /var/lib/karrow
VOLUME /var/lib/karrow
# Inside a container only its own network reaches these; publish them where clients may connect.
# Protected mode stays on: remote clients are refused until KARROW_NO_PROTECTED_MODE=true.
ENV KARROW_HOST=0.0.0.0 \
    KARROW_PORT=6380 \
    KARROW_HTTP_PORT=8080 \
    KARROW_FLIGHT_PORT=8815
EXPOSE 6380 8080 8815
# bash speaks TCP: no client needs to be in the image.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$KARROW_PORT && printf 'PING\\r\\n' >&3 && read -r -t 2 reply <&3 && [[ $reply == +PONG* ]]"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["karrow"]
CMD ["serve"]
