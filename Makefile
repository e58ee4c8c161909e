# adit: everything a newcomer, a developer and CI need. On Debian, as root (or with sudo).

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Tests and the gateway make network namespaces and tun interfaces.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E env PATH=$$PATH HOME=$$HOME")
CARGO := $(SUDO) cargo
DATA ?= data
ADIT := target/release/adit

RUN_PACKAGES := gcc libc6-dev make nftables iproute2
TEST_PACKAGES := $(RUN_PACKAGES) openvpn openssh-client openssh-server nginx stunnel4 curl openssl iperf3 iputils-ping procps util-linux faketime haproxy iptables tcpdump
BENCH_PACKAGES := $(TEST_PACKAGES) sslh

.PHONY: help run demo test lint audit bench proof soak fuzz clean

help:
	@echo "make run     build, and run a gateway in ./$(DATA) with a first user"
	@echo "make test    every test, at reduced counts"
	@echo "make demo    the whole story in network namespaces, with the stock client"
	@echo "make lint    formatting, clippy, dependency and licence rules"
	@echo "make bench   speed and memory beside OpenVPN's, relaying beside HAProxy's and sslh's, NAT beside iptables'"
	@echo "make proof   every test at full counts; parts: $(PROOFS)"
	@echo "make soak    an hour of everything, watching memory"
	@echo "make fuzz    every fuzz target for a minute (SECONDS_EACH=60)"
	@echo "make audit   known vulnerabilities of dependencies (needs the network)"

## What is missing on this machine. Nothing is asked for that is there already.
define need
	@missing=; for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

run:
	$(call need,$(RUN_PACKAGES))
	$(CARGO) build --release -p adit
	@$(SUDO) scripts/run $(ADIT) $(DATA)

demo:
	$(call need,$(TEST_PACKAGES))
	$(CARGO) build --release -p adit
	$(SUDO) $(ADIT) demo

test:
	$(call need,$(TEST_PACKAGES))
	$(CARGO) build -p adit
	$(CARGO) test --workspace

lint:
	$(call need,gcc libc6-dev make)
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test -p adit-lint

## Advisories are fetched from the network, so this is no part of lint.
audit:
	@command -v cargo-audit >/dev/null || cargo install cargo-audit --locked
	cargo audit

bench:
	$(call need,$(BENCH_PACKAGES))
	$(CARGO) build --release -p adit -p adit-bench
	$(SUDO) target/release/adit-bench

## The full counts, in parts of at most 40 minutes each.
PROOFS := proof-machines proof-matrix proof-life proof-refusals proof-client proof-striping proof-nat proof-trail
proof: $(PROOFS)

.PHONY: $(PROOFS)
proof-machines:
	$(call need,$(TEST_PACKAGES))
	PROPTEST_CASES=20000 ADIT_SCALE=full $(CARGO) test --release -p adit-wire -p adit-tunnel -p adit-openvpn -p adit-plan -p adit-classify -p adit-capture -p adit-fuzz-targets
proof-matrix:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test matrix -- --nocapture
proof-life:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test life --test leak --test joining -- --nocapture
proof-refusals:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test refusals --test bad_input --test cli --test profiles -- --nocapture
proof-client:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test client --test client_refusals -- --nocapture
proof-striping:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test striping --test foreign --test port_plan --test learn --test export --test classify --test floods -- --nocapture
proof-nat:
	$(call need,$(TEST_PACKAGES))
	ADIT_SCALE=full $(CARGO) test -p adit-tests --test natfw --test nat --test trace --test trail --test replan --test forward --test router -- --nocapture

## A year of 10,000 users: what it takes on the disk (5 GB in TMPDIR), how long a trace takes, how fast the chain is followed.
proof-trail:
	$(call need,gcc libc6-dev make)
	$(CARGO) build --release -p adit-store --example trace_year
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(SUDO) target/release/examples/trace_year $$dir 10000 365 20000

soak:
	$(call need,$(TEST_PACKAGES))
	$(CARGO) build --release -p adit -p adit-bench
	$(SUDO) target/release/adit-bench soak

## libFuzzer wants the compiler's unstable options; nothing else here does.
SECONDS_EACH ?= 60
fuzz:
	$(call need,gcc g++ libc6-dev make)
	@command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
	@scripts/fuzz $(SECONDS_EACH)

clean:
	cargo clean
