# chatd: `make run` starts it, `make test` checks it. Both first install what they need into .venv.
#   make run OPTIONS="--listen tcp:8080"      make test TESTS=tests/room

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test lint types clean

run: $(VENV)/run.stamp
	@$(BIN)/twistd --nodaemon --pidfile= chatd $(OPTIONS)

test: lint types
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "chatd needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@.ci/need $(PYTHON):ensurepip python3-venv "a virtual environment cannot be made"
	@echo "making $(VENV), once"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Editable: what is changed in the checkout is what runs.
$(VENV)/run.stamp: $(VENV)/made.stamp setup.cfg pyproject.toml
	@echo "installing chatd and what it stands on into $(VENV), once"
	@$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	@echo "installing what the tests need into $(VENV), once"
	@$(PIP) --editable '.[test]'
	@.ci/need systemd-analyze systemd "the systemd unit cannot be checked"
	@.ci/need curl curl "the transcripts in the documentation cannot be printed"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
