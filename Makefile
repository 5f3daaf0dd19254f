# Every target does its own set-up: the first run creates .venv and installs what is needed, later runs start
# at once. Set-up runs again when pyproject.toml changes.
#
# Variables to override on the command line:
#   PYTHON       the Python (3.11 or newer) that .venv is made from
#   VENV         where the virtual environment lives
#   TORCH        what to install on a machine with an NVIDIA GPU, and wherever no special CPU build exists
#   TORCH_CPU    the CPU build, looked for where pip is configured to look
#   TORCH_INDEX  one more index to look in for it, e.g. PyTorch's own index of CPU builds
#   FUZZ_EXAMPLES  how many new cases `make fuzz` draws for each of its tests
#   WORKERS      processes that share the tests of `make test`; 0 is this one alone
#   PYTEST_ARGS  more arguments for pytest, e.g. PYTEST_ARGS="-k delta -x"

PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch>=2.8
TORCH_CPU   ?= torch==2.13.0+cpu
TORCH_INDEX ?=
WORKERS     ?= auto
PYTEST_ARGS ?=
FUZZ_EXAMPLES ?= 2000

BIN   := $(VENV)/bin
# Errors still show; warnings about pip's own configuration do not.
PIP   := $(BIN)/python -m pip -qq --disable-pip-version-check
SETUP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-gpu fuzz lint format types stubs docs docs-serve clean setup

help:
	@echo "make demo      train, stream and evaluate a small model on this machine; results in runs/demo/"
	@echo "make test      the test suite (everything that needs no GPU)"
	@echo "make test-gpu  the tests that need a GPU"
	@echo "make fuzz      random cases against the independent loops, as many as FUZZ_EXAMPLES says"
	@echo "make lint      ruff: lint and format check        make format  apply ruff's fixes"
	@echo "make docs      the documentation site, in site/   make docs-serve  show it while it is written"
	@echo "make types     mypy                               make clean   remove what make created"
	@echo "make stubs     the names of rules and layers, for type checkers and editors"

setup: $(SETUP)

demo: $(SETUP)
	$(BIN)/linrec demo

test: $(SETUP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu" $(PYTEST_ARGS)

test-gpu: $(SETUP)
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

fuzz: $(SETUP)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz $(PYTEST_ARGS)

lint: $(SETUP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(SETUP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(SETUP)
	$(BIN)/mypy

stubs: $(SETUP)
	$(BIN)/python -m linrec.stubs

# Warnings are errors: mkdocs.yml says strict. The variable silences an advertisement of the theme's.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: $(SETUP)
	$(BIN)/python -m mkdocs build --quiet --strict --clean

docs-serve: $(SETUP)
	$(BIN)/python -m mkdocs serve

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that nothing else pulls a CUDA build onto a machine without a GPU.
$(VENV)/.torch:
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "linrec needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Darwin ] || nvidia-smi >/dev/null 2>&1; then \
	    echo "==> installing $(TORCH)"; \
	    $(PIP) install "$(TORCH)"; \
	else \
	    echo "==> no NVIDIA GPU here: installing $(TORCH_CPU)"; \
	    $(PIP) install "$(TORCH_CPU)" 2>/dev/null \
	    || { [ -n "$(TORCH_INDEX)" ] && $(PIP) install "$(TORCH_CPU)" --extra-index-url "$(TORCH_INDEX)"; } \
	    || { echo "==> no CPU build found: installing $(TORCH)"; $(PIP) install "$(TORCH)"; }; \
	fi
	@touch $@

$(SETUP): $(VENV)/.torch pyproject.toml
	@echo "==> installing linrec and its development dependencies (a few minutes the first time)"
	@$(PIP) install --editable ".[dev]"
	@touch $@
	@echo "==> ready"
