# hetserve from a fresh clone: needs Python 3.11 or newer, g++ and make; everything else goes into a virtual environment.
#
#   make bench          this engine beside a real vLLM, on this machine: a table
#   make test           all tests
#   make lint           ruff, mypy, clang-format (where it is installed)
#   make kernel-bench   the attention kernels: compared with the reference, then timed beside plain reads of memory
#   make install        what these need, and no more
#
# Overrides: PYTHON=python3.12   VENV=/path/to/venv   ARGS="more arguments"
#            VENV_FLAGS=--system-site-packages (use the torch this machine already has)   TORCH="what pip shall install instead"

PYTHON     ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
                $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV       ?= .venv
VENV_FLAGS ?=
TORCH      ?= torch==2.13.0
ARGS       ?=

PY       := $(VENV)/bin/python
PIP      := $(PY) -m pip install --quiet --disable-pip-version-check
SOURCES  := $(wildcard CMakeLists.txt setup.py pyproject.toml) $(shell find csrc -type f)
HETSERVE := $(VENV)/bin/hetserve

export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: install bench test lint kernel-bench
.DELETE_ON_ERROR:

install: $(VENV)/.installed

bench: $(VENV)/.installed
	$(HETSERVE) baseline install vllm
	$(HETSERVE) bench --baseline vllm $(ARGS)

test: $(VENV)/.installed
	$(PY) -m pytest -q $(ARGS)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m mypy hetserve cli
	@if command -v clang-format >/dev/null; then \
	    find csrc -name '*.cpp' -o -name '*.h' | xargs clang-format --dry-run --Werror; \
	else echo "clang-format is not installed: csrc was not checked"; fi

kernel-bench: $(VENV)/.installed
	@build=build/cmake-$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)') && \
	    cmake --build $$build --target hetserve-kernel-bench && \
	    $$build/hetserve-kernel-bench --commit "$$(git describe --always --dirty 2>/dev/null || echo unknown)" $(ARGS)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer was not found"; echo "hint: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

# torch first and pinned: the version the real vLLM asks for too. One that is already importable is left alone.
$(VENV)/.torch: | $(VENV)/bin/python
	@$(PY) -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(PIP) $(TORCH); }
	@touch $@

$(VENV)/.tools: pyproject.toml | $(VENV)/.torch
	@echo "installing the build tools"
	@$(PIP) "setuptools>=77" wheel cmake ninja pybind11
	@touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.tools
	@echo "building the kernels and installing hetserve with what it needs"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
