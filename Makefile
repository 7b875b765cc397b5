# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first,
# once: for the demonstration with what a user needs, for the tests with what a developer needs too.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v --version > /dev/null 2>&1 && echo python$$v && break; done || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# what requirements/ lists and nothing else: a file whose hash is not there ends the command
# modules are compiled where they are first imported, which most never are
LISTED := $(PIP) install --require-hashes --no-deps --no-compile
# and are kept, also where the surroundings say otherwise: every process would compile them anew
unexport PYTHONDONTWRITEBYTECODE
DEMO ?= demo
# one more than cores: some tests wait for a server or a clock
WORKERS := $(shell expr $$(nproc 2> /dev/null || echo 1) + 1)
CODE := src tests measurements docs setup.py

.PHONY: demo test pytest lint docs lock clean

demo: $(VENV)/.user
	$(BIN)/dkuxnet demo $(DEMO)

# both at once: mypy leaves all cores but one to the tests
test: $(VENV)/.developer
	$(MAKE) --jobs 2 lint pytest

pytest: $(VENV)/.developer
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.developer
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# one offline site: open build/docs/index.html
docs: $(VENV)/.developer
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) $(DEMO) build dist docs/reference src/*.egg-info

# The lists anew, after a change of pyproject.toml: see requirements/lock.sh.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --quiet install uv==0.13.9
	PATH="$(CURDIR)/build/lock/bin:$$PATH" requirements/lock.sh $(UPGRADE)

$(VENV)/.user: pyproject.toml setup.py requirements/user.txt requirements/cpu.txt requirements/gpu.txt
	$(PYTHON) -m venv $(VENV)
	$(LISTED) --no-index -r requirements/cpu.txt 2> /dev/null || echo "torch: the build for GPUs too"
	$(LISTED) -r requirements/user.txt
	$(BIN)/python -m pip show torch | grep -q '^Version: .*+cpu' || $(LISTED) -r requirements/gpu.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	$(PIP) check
	touch $@

$(VENV)/.developer: $(VENV)/.user requirements/developer.txt
	$(LISTED) -r requirements/developer.txt
	touch $@
