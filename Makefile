# Two commands are enough on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-full lint clean

demo: $(STAMP)
	$(BIN)/python -m xsuperres.demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90

test-full: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 -m full

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'xsuperres needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable ".[test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo_output build *.egg-info
