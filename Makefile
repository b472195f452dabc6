# hetserve from a fresh clone: needs Python 3.11 or newer, g++ and make; everything else goes into a virtual environment.
#
#   make bench          this engine beside a real vLLM, on this machine: a table
#   make test           all tests
#   make lint           ruff, mypy, clang-format (where it is installed)
#   make reproduce      the papers' claims that are simulated, each beside our number, into results/; under 30 minutes on two cores, no data needed
#   make kernel-bench   the attention kernels: compared with the reference, then timed beside plain reads of memory
#   make install        what these need, and no more
#   make cuda-all       the CUDA kernels for every architecture (needs nvcc, no GPU); registers and spills of each kernel
#   make gpu-wheels     what a machine with a GPU and no network may lack, as wheels in .wheels (40 MiB at most), for gpu-check to install there
#   make gpu-check      with a GPU: build, op tests, kernels, the engine's tokens, steps and serving, a profile, into RESULT_DIR; under nine minutes;
#                       takes the system's Python, no virtual environment, no network
#   make gpu-sanitize   with a GPU, after gpu-check: the op tests under compute-sanitizer (TOOL=racecheck, synccheck, initcheck); under nine minutes
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

.PHONY: install bench test lint reproduce kernel-bench cuda-all gpu-wheels gpu-check gpu-sanitize
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

reproduce: $(VENV)/.installed
	$(HETSERVE) reproduce $(ARGS)

kernel-bench: $(VENV)/.installed
	@build=build/cmake-$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)') && \
	    cmake --build $$build --target hetserve-kernel-bench && \
	    $$build/hetserve-kernel-bench --commit "$$(git describe --always --dirty 2>/dev/null || echo unknown)" $(ARGS)

CUDA_ARCHITECTURES ?= 75;80;86;89;90;100;120
TOOL               ?= memcheck
SANITIZE_S         ?= 520
RESULT_DIR         ?= results/gpu/$(shell date +%Y%m%d)

# Always from nothing, so that what is read from the log is of every kernel; by ninja, which keeps the lines of each compilation together.
cuda-all: $(VENV)/.installed
	cmake --fresh -G Ninja -S . -B build/cuda-all -DCMAKE_BUILD_TYPE=Release -DHETSERVE_CUDA=on "-DHETSERVE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)" \
	    -DHETSERVE_CUDA_STRICT=ON -DHETSERVE_CUDA_FLAGS=-Xptxas=-v -DPython_EXECUTABLE=$(abspath $(PY)) -DPYBIND11_FINDPYTHON=ON \
	    "-Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)" >/dev/null
	cmake --build build/cuda-all --clean-first --target cuda_kernels cuda_tensor_kernels --parallel >build/cuda-all/log.txt 2>&1 || \
	    { cat build/cuda-all/log.txt; exit 1; }
	$(PY) -m hetserve.bench.gpu.registers build/cuda-all/log.txt $(ARGS)

gpu-wheels:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(PY)),$(PY),python3) -m hetserve.bench.gpu.wheels .wheels

gpu-check:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(PY)),$(PY),python3) -m hetserve.bench.gpu $(RESULT_DIR)

# Only our kernels are checked, torch's would take most of the time. What is asked of the driver on purpose and refused (is this memory reached?) is
# no error. Every tensor is an allocation of its own, so that no access beyond it goes unseen.
SANITIZER = $$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer) --tool $(TOOL) --kernel-name kns=hetserve \
    --target-processes all --launch-timeout 0 --error-exitcode 1 $(if $(filter memcheck,$(TOOL)),--report-api-errors no)
SANITIZED = tests/ops tests/engine/test_staged.py tests/engine/test_mover_devices.py

gpu-sanitize:
	PYTHONPATH=.:build/wheels$${PYTHONPATH:+:$$PYTHONPATH} PYTORCH_NO_CUDA_MEMORY_CACHING=1 HETSERVE_TEST_GPU=required \
	    timeout --signal=INT --kill-after=10 $(SANITIZE_S) $(SANITIZER) $(if $(wildcard $(PY)),$(PY),python3) -m pytest -v -p no:cacheprovider \
	    --maxfail=20 -k "cuda and not emulated" $(SANITIZED)

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
