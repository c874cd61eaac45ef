# The few commands of this project. `make up` on a clean machine ends with a running platform.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do $$python -c '' 2>/dev/null && echo $$python && break; done)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Where it is set (images for containers do), every process of a test would compile Wootz anew, and every run all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test check tests bench docs clean

up: $(VENV)/.up  ## Install what is needed and start the platform
	@exec $(BIN)/wootz up

test: $(VENV)/.dev  ## Everything that must hold: checks, and beside them the tests
	@$(MAKE) --no-print-directory --jobs=2 check tests

tests: $(VENV)/.dev  ## The tests alone, in several processes
	$(BIN)/pytest -n auto --dist loadscope

check: $(VENV)/.dev  ## Style, types and the floors of the house
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## The CPU serving benchmark beside its peers
	$(BIN)/python benchmarks/serve_cpu.py

docs: $(VENV)/.dev  ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## Remove what the other targets made
	rm -rf $(VENV) site build dist bench-out .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Stamps: made anew only when what they were installed from has changed.

KERNELS := $(wildcard src/wootz/kernels/*.cpp src/wootz/kernels/*.h src/wootz/kernels/training/*.cpp src/wootz/kernels/training/*.h) src/wootz/kernels/CMakeLists.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.up: Makefile pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing Wootz into $(VENV) (once)…"
	$(PIP) -e '.[engine,bench,train]'
	@touch $@

$(VENV)/.dev: Makefile pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing Wootz and its development tools into $(VENV) (once)…"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.up
