# chatd: `make run` starts it, `make test` checks it. Both install what they need into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint types clean

run: $(VENV)/run
	$(BIN)/twistd --nodaemon --pidfile= chatd $(OPTIONS)

test: $(VENV)/test lint types
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

# A virtual environment whose Python is new enough and can install. A folder that is only half made is made anew.
$(BIN)/pip:
	@sh deploy/need.sh python $(PYTHON)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)

# Installed editable: what you change here is what runs.
$(VENV)/run: $(BIN)/pip setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test: $(BIN)/pip setup.cfg pyproject.toml
	@sh deploy/need.sh test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/run

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
