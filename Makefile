# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first,
# once: for the demonstration with what a user needs, for the tests with what a developer needs too.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v --version > /dev/null 2>&1 && echo python$$v && break; done || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO ?= demo
CODE := src tests measurements docs setup.py

.PHONY: demo test lint docs clean

demo: $(VENV)/.user
	$(BIN)/dkuxnet demo $(DEMO)

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.developer
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# one offline site: open build/docs/index.html
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) $(DEMO) build dist docs/reference src/*.egg-info

$(VENV)/.user: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.user
	$(PIP) -e '.[docs]'
	touch $@
