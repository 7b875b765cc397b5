# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/dkuxnet demo $(DEMO)

test: $(VENV)/.installed
	$(BIN)/ruff check src tests measurements
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests measurements

# one offline site: open build/docs/index.html
docs:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) $(DEMO) build src/*.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
