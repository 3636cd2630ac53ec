# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. Everything sets itself up first; what is up to date is not done again.

PREFIX ?= /usr/local
DESTDIR ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-c test-python test-sanitize tsn-kernel fuzz lint format bench install clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1#\2/p' Makefile | column -t -s '#'

setup: ## system packages (as root), .venv, build: what is missing or out of date
	@.ci/setup

demo: setup ## readings of this machine from one host to another, with latency summary and picture
	@demo/run

test: setup test-c test-python ## C and Python tests

test-c: setup
	@echo "==> C tests"
	@.venv/bin/meson test -C build --no-rebuild --print-errorlogs

test-python: setup
	@echo "==> Python tests"
	@.venv/bin/pytest

test-sanitize: setup ## C tests under AddressSanitizer + UBSan, then under ThreadSanitizer
	@.ci/sanitize build-asan address,undefined
	@.ci/sanitize build-tsan thread

tsn-kernel: ## a kernel with simulated time and PTP clock, for the tests; half an hour, once (tests/testbed/README.md)
	@.ci/tsn-kernel

fuzz: setup ## every fuzz target for a moment; TARGET=name RUNS=n: one of them (CONTRIBUTING.md)
	@.ci/fuzz $(TARGET) $(RUNS)

lint: setup ## ruff, mypy --strict, clang-format: checks only
	@.ci/lint

format: setup ## let ruff and clang-format rewrite the sources
	@.ci/lint --fix

bench: setup ## every benchmark, short
	@.ci/bench

# Into a system: C libraries, headers, pkg-config files, selened-dp, manual pages, completions, unit files. Commands in Python come
# with pip.
install: setup ## C parts, manual pages, completions into PREFIX (/usr/local), below DESTDIR
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .ci/install-c "$(PREFIX)" "$(DESTDIR)"

clean: ## remove what was built, .venv included
	rm -rf build build-install build-asan build-tsan build-fuzz build-profile .build-* .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
