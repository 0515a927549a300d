# chatd: `make run` starts it, `make test` checks it, `make test-all` runs all other tests. Each installs what it needs.
#   make run OPTIONS="--listen tcp:8080"      make test TESTS=tests/rooms

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --requirement
COMPILE := uv pip compile setup.cfg --quiet --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command 'make lock' --no-emit-index-url --no-emit-find-links $(LOCK)

# Program, Debian package, and what can't be done without it.
NEED_VENV := $(PYTHON):ensurepip python3-venv "a virtual environment cannot be made"
NEED_CC := cc gcc "the load generator cannot be compiled" \
  /usr/include/stdio.h libc6-dev "the load generator cannot be compiled"
NEED_NODE := node nodejs "neither the JavaScript client nor the Node peer can run" \
  npm npm "what they stand on cannot be installed"
NEED_ALL := $(NEED_CC) $(NEED_NODE) \
  git git "an upgrade cannot be tried" \
  systemd-analyze systemd "the systemd unit cannot be checked" \
  ip iproute2 "the network between two hosts cannot be cut" \
  redis-check-rdb redis-tools "TLS to a broker cannot be tested" \
  curl curl "the transcripts in the documentation cannot be printed" \
  openssl openssl "the commands in the documentation cannot be tried" \
  rlwrap rlwrap "the commands in the documentation cannot be tried" \
  chromium chromium "the chat page cannot be tested" \
  promtool prometheus "alerts and metrics cannot be checked" \
  faketime faketime "the clock cannot be set" \
  setpriv util-linux "what the container runs cannot be tried" \
  logrotate logrotate "deploy/logrotate cannot be tested" \
  nginx nginx "deploy/nginx.conf cannot be tested" \
  haproxy haproxy "deploy/haproxy.cfg cannot be tested"

# Where Debian has nginx, HAProxy and ip, which not every user's PATH has.
export PATH := $(PATH):/usr/sbin:/sbin

SOAK ?= 3600
FUZZ ?= 300
AT_ONCE ?= 3

.PHONY: run test test-all announce bench soak lint types audit lock clean

# A Ctrl-C is how it ends: make, which gets it as well, is not to call that an error (130). Programs of a virtual
# environment know its path, so that none of them can run where it was moved (126 or 127, which one depends on the shell).
run: $(VENV)/run.stamp
	@trap : INT; $(BIN)/twistd --nodaemon --pidfile= chatd $(OPTIONS) || { code=$$?; \
	  case $$code in 130) exit 0;; 126|127) echo "the checkout was moved: run make clean, then make run" >&2;; esac; exit $$code; }

# tests/quick.txt lists the tests of `make test`; `make test-all` runs the others. Three files of tests at once even on two
# cores, because much of it is waiting. A file stays in one process, because its tests share a daemon. Files keep their order:
# otherwise those with few tests, which take longest, come last. Bytecode is kept, because hundreds of Pythons are started.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder

test: lint types
	$(PYTEST) --part quick $(TESTS)

test-all: announce build/packages.stamp $(VENV)/full.stamp audit build/seed.stamp build/load
	$(PYTEST) --part full $(TESTS)

announce:
	@[ -e build/packages.stamp ] || echo "make test-all installs Debian packages (up to 590 with their dependencies, 3 GB; the list follows)"
	@[ -e $(VENV)/full.stamp ] || echo "make test-all installs the Python packages of requirements/full.txt into $(VENV)"
	@[ -e build/seed.stamp ] || echo "make test-all installs the npm packages of benchmarks/peers/seed into build/seed"

# make bench BENCH="--quick"     make bench BENCH="--rounds 1 fan-out"
bench: $(VENV)/bench.stamp build/load build/seed.stamp
	@$(BIN)/python -m benchmarks $(BENCH)

# make soak SOAK=600 FUZZ=30: ten minutes of it, and half a minute of fuzzing; python -m tests.soak --help: the same again.
# First random searches, attacks and measurements at full depth (tests/depth.py).
soak: $(VENV)/full.stamp
	DEEP=1 $(PYTEST) --part quick $(TESTS)
	DEEP=1 $(PYTEST) $$(grep --files-with-matches tests.depth tests/system/test_*.py)
	@$(BIN)/python -m tests.fuzz wire --seconds $(FUZZ)
	@$(BIN)/python -m tests.fuzz client --seconds $(FUZZ)
	@$(BIN)/python -m tests.soak --seconds $(SOAK)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md chatd docs benchmarks deploy
	@$(BIN)/python -m tests.prose

types: $(VENV)/test.stamp
	$(BIN)/mypy

audit: $(VENV)/full.stamp
	@$(BIN)/python -m tests.audit requirements/*.txt

# make lock: what setup.cfg asks for beyond what is locked    make lock LOCK=--upgrade: the newest of all
# One lock fits all versions of Python and all platforms; what several of them have, they have in the same version.
lock: $(VENV)/full.stamp
	@$(BIN)/$(COMPILE) --extra build --extra test --extra full --output-file requirements/full.txt
	@$(BIN)/$(COMPILE) --extra build --extra test --constraint requirements/full.txt --output-file requirements/test.txt
	@$(BIN)/$(COMPILE) --extra build --constraint requirements/full.txt --output-file requirements/run.txt
	@$(BIN)/$(COMPILE) --extra build --extra bench --constraint requirements/full.txt --output-file requirements/bench.txt

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "chatd needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@.ci/need $(NEED_VENV)
	@echo "making $(VENV), once"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Editable: what is changed in the checkout is what runs.
$(VENV)/run.stamp: $(VENV)/made.stamp setup.cfg pyproject.toml requirements/run.txt
	@echo "installing chatd and what it stands on into $(VENV), once"
	@$(LOCKED) requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements/test.txt
	@echo "installing what make test needs into $(VENV), once"
	@$(LOCKED) requirements/test.txt
	@touch $@

$(VENV)/full.stamp: $(VENV)/test.stamp requirements/full.txt
	@echo "installing what make test-all needs into $(VENV), once"
	@$(LOCKED) requirements/full.txt
	@touch $@

# Debian packages that make test-all needs, all at once.
build/packages.stamp: Makefile
	@.ci/need $(NEED_ALL)
	@mkdir -p $(@D)
	@touch $@

# The load generator, and the Node peer with what it is built from (the tests take its WebSockets, for a Node that has
# none of its own); both are used by the tests or the benchmark only.
build/load: benchmarks/load.c
	@mkdir -p $(@D)
	@$(CC) -std=c11 -O2 -Wall -Wextra -Werror -o $@ $< -lm

build/seed.stamp: $(wildcard benchmarks/peers/seed/*)
	@.ci/need $(NEED_NODE)
	@mkdir -p build/seed
	@cp benchmarks/peers/seed/* build/seed/
	@cd build/seed && npm ci --omit=dev --no-audit --no-fund --loglevel=error
	@touch $@

$(VENV)/bench.stamp: $(VENV)/run.stamp requirements/bench.txt
	@echo "installing what the benchmarks need, once"
	@$(LOCKED) requirements/bench.txt
	@.ci/need $(NEED_CC)
	@.ci/need nginx nginx "Nchan is not measured" || true
	@.ci/need /usr/lib/nginx/modules/ngx_nchan_module.so libnginx-mod-nchan "Nchan is not measured" || true
	@.ci/need $(BIN)/python:socketify libuv1 "uWebSockets is not measured" || true
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
