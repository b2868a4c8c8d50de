# make run: from a fresh checkout to a running karrow. make test: everything. make bench: against redis-server.

MAKEFLAGS += --no-print-directory
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# Outside of the checkout, so that it survives `git clean`, and images never copy it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/karrow/target
# rustup's default place, in case the shell has not read its profile since.
export PATH := $(PATH):$(HOME)/.cargo/bin

BINARY := $(CARGO_TARGET_DIR)/release/karrow
ARGS ?= serve --embedded

.PHONY: run build install tools test lint unit e2e bench help

help:
	@echo 'make run     build karrow and start it with a Kafka of its own (ARGS="serve -c librdkafka.json" for another start)'
	@echo 'make test    formatting, lints, all tests, all clients'
	@echo 'make bench   karrow beside redis-server'

run: build
	@exec '$(BINARY)' $(ARGS)

build: tools
	cargo build --release

# Names what is missing, or installs it: on Debian and Ubuntu as root.
tools:
	@missing=(); packages=(); \
	need() { command -v "$$1" >/dev/null || { missing+=("$$2"); packages+=("$$3"); }; }; \
	header() { printf '#include <%s>\n' "$$1" | "$${CC:-cc}" -E - >/dev/null 2>&1 || { missing+=("$$2"); packages+=("$$3"); }; }; \
	need "$${CC:-cc}" 'a C compiler' build-essential; \
	need "$${CXX:-c++}" 'a C++ compiler' build-essential; \
	need make make build-essential; \
	need cmake cmake cmake; \
	need pkg-config pkg-config pkg-config; \
	need curl curl curl; \
	need unzip unzip unzip; \
	if command -v "$${CC:-cc}" >/dev/null; then \
		header openssl/ssl.h 'OpenSSL (headers)' libssl-dev; \
		header zlib.h 'zlib (headers)' zlib1g-dev; \
	else \
		packages+=(libssl-dev zlib1g-dev); \
	fi; \
	if (( $${#packages[@]} )); then \
		mapfile -t packages < <(printf '%s\n' "$${packages[@]}" | sort -u); \
		if command -v apt-get >/dev/null && [[ $$EUID == 0 ]]; then \
			echo "Installing $${packages[*]}"; \
			apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${packages[@]}" >/dev/null; \
		else \
			echo "Missing: $$(IFS=,; echo "$${missing[*]}" | sed 's/,/, /g')." >&2; \
			echo "On Debian and Ubuntu: sudo apt-get install $${packages[*]}" >&2; \
			echo "On macOS: xcode-select --install; brew install cmake pkg-config openssl@3" >&2; \
			exit 1; \
		fi; \
	fi; \
	command -v cargo >/dev/null || { \
		echo 'Missing: Rust 1.90 or newer. Get it from https://rustup.rs and run make again.' >&2; exit 1; }
	@tools/duckdb >/dev/null

# Where `make install` puts the program.
PREFIX ?= /usr/local

# The program finds DuckDB's library beside its folder.
install: build
	install -D -m 755 '$(BINARY)' '$(PREFIX)/bin/karrow'
	folder=$$(tools/duckdb); library=$$(ls "$$folder" | grep libduckdb_java); \
	install -D -m 644 "$$folder/$$library" "$(PREFIX)/lib/$$library"

lint: tools
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --all-targets --no-default-features -- -D warnings

unit: tools
	cargo test --release

e2e: build
	KARROW_BIN='$(BINARY)' e2e/run

# The slowest last: its summary is the last line.
test:
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) e2e

bench: tools
	cargo bench --profile release --bench gateway
