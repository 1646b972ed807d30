# make demo, make test: everything from a bare clone, virtual environment included.
#
#   PYTHON=path   use this Python as it is, dependencies and all, in place of the virtual environment
#   VENV=path     where the virtual environment is made (default .venv)
#   BASE=python   the Python that makes it (default python3)
#   DATA=file     (demo) frames to train on, instead of labelling them
#   CUDA=AUTO     (develop) operators for NVIDIA GPUs: ON, OFF, or if nvcc is found (default OFF)
#   ARCHITECTURES (cuda) of GPUs (default 90)
#   CLIENTS=...   (test-clients) of mace, nequip, sevennet (default all)
#   ARGS=...      further arguments of demo, test and benchmark

# What tests/triton_resources.json was made with. Not in constraints.txt: builds of torch for GPUs name another,
# which nothing here runs.
TRITON := 3.9.0

VENV ?= .venv
BASE ?= python3
ARGS ?=
CUDA ?= OFF
ARCHITECTURES ?= 90
CLIENTS ?= mace nequip sevennet
ifeq ($(origin PYTHON),command line)
  override PYTHON := $(shell command -v $(PYTHON))
  environment :=
else
  override PYTHON := $(abspath $(VENV))/bin/python
  environment := $(VENV)/.ready
endif
bin := $(dir $(PYTHON))
cxx := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
run := PYTHONPATH=$(CURDIR)/python $(PYTHON)
cmake := PATH="$(bin):$$PATH" cmake
configure = $(cmake) -S . -G Ninja -DPython_EXECUTABLE=$(PYTHON) -DCLEBSCH_TESTS=ON -DCLEBSCH_CUDA=$(CUDA) --log-level=WARNING
ctest := PATH="$(bin):$$PATH" ctest --output-on-failure --no-tests=error --test-dir

.PHONY: help demo test test-clients test-emulated test-interpreted test-gpu test-package sanitize races cuda cuda-budget \
  check-cuda-budget develop benchmark wheel lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile
	@echo 'targets: demo test test-clients test-emulated test-interpreted test-gpu test-package sanitize races cuda cuda-budget check-cuda-budget develop benchmark wheel lint format clean'

# Trains a potential; then, unless DATA or ARGS ask for something else, dynamics with a trained SevenNet.
demo: develop
	$(run) -m clebsch demo $(if $(DATA),--data "$(DATA)") $(ARGS)
	$(if $(DATA)$(ARGS),,$(run) -m clebsch demo --model 7net-0)

# First the C++ tests, on the kernels that `develop` made, protected pages around their arrays; not where
# ARGS names a part of the Python tests.
test: develop
	@$(if $(ARGS),:,$(cmake) --build build/develop --target clebsch_tests)
	$(if $(ARGS),,$(ctest) build/develop)
	$(run) -m pytest -n 2 $(ARGS)

# Accelerated models beside MACE, NequIP with Allegro, and SevenNet, each installed in an environment of its own.
test-clients: develop
	$(PYTHON) tests/clients/run.py $(CLIENTS) $(ARGS)

# The kernels of the GPU run on the processor, thread by thread, in three orders (csrc/cuda/emulator.h): all tests
# of operators, and of layers on them, but those marked about_the_cpu or not_emulated, on problems as large as
# tests/sizes.py says. Fails where these reach not every kernel, unless ARGS names a part. And some of tests/gpu,
# so that they would run.
operator_tests := tests/test_spherical_harmonics.py tests/test_tensor_product.py tests/test_convolution.py \
  tests/test_edge_product.py tests/test_symmetric_contraction.py tests/test_linear.py tests/test_one_hot.py \
  tests/test_radial_convolution.py tests/test_gate.py tests/test_silu.py tests/test_storage.py
test-emulated: develop
	@$(cmake) --build build/develop --target clebsch_emulated
	$(run) -m pytest -n 2 --emulated $(if $(ARGS),,--every-kernel) $(operator_tests) \
	  tests/test_symmetric_contraction_table.py tests/test_autocast.py tests/test_cuda_tables.py \
	  tests/test_graph.py tests/test_multilinear.py tests/test_errors.py tests/test_compile.py \
	  tests/test_cuda_budget.py tests/test_devices.py tests/test_*_layer.py tests/test_layers_against_e3nn.py \
	  tests/test_fully_connected_net.py tests/test_tensor_square.py tests/test_models.py tests/test_check.py $(ARGS)
	$(if $(ARGS),,$(run) -m pytest -n 2 --emulated tests/gpu -k "operators_on_gpu and (captured or one_hot or more_)")

# Triton's kernels in its interpreter: what is tested of them alone, and all operator tests of the CPU's kernels
# but those marked about_the_cpu or not_interpreted, on problems as small as tests/sizes.py says. Fails where these
# reach not every kind of kernel, unless ARGS names a part.
test-interpreted: develop
	$(run) -m pytest -n 2 --interpreted $(if $(ARGS),,--every-kernel) tests/test_triton_interpreted.py \
	  tests/test_spherical_harmonics.py tests/test_tensor_product.py tests/test_convolution.py \
	  tests/test_storage.py tests/test_compile.py::TestOpcheck $(ARGS)

# On a machine with an NVIDIA GPU and a torch for it: builds the operators, and fails where there is none. Then,
# unless ARGS names a part, the emulator's operator tests with the GPU in the CPU's place.
test-gpu: override CUDA := ON
test-gpu: develop
	$(run) -m pytest tests/gpu --gpu $(ARGS)
	$(if $(ARGS),,$(run) -m pytest --on-gpu $(operator_tests))

# Compiles the operators for NVIDIA GPUs, for one architecture, where there is a compiler, and tests what can be
# tested without a GPU. The next `make develop` leaves them out again.
cuda: develop
	@if command -v nvcc >/dev/null || test -n "$$CUDACXX"; then \
	  $(configure) -B build/develop -DCLEBSCH_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$(ARCHITECTURES)" && \
	  $(cmake) --build build/develop --target clebsch_cuda && \
	  CLEBSCH_CUDA_LIBRARY=build/develop/csrc/cuda/_clebsch_cuda.so $(run) -m pytest -q tests/test_cuda.py; \
	else echo "make cuda: skipped, there is no nvcc"; fi

# Registers, accesses and multiply-adds of every kernel for GPUs, read from its machine code for three
# architectures: written to benchmarks/cuda/budget.json and docs/cuda-roofline.md, or compared with them.
# Without nvcc: nothing.
cuda-budget: develop
	$(run) -m benchmarks.cuda update
check-cuda-budget: develop
	$(run) -m benchmarks.cuda check

# The same tests under AddressSanitizer and UndefinedBehaviorSanitizer, kernels of the CPU unrolled to degree 1
# only; no torch, no Python in the process.
sanitize: $(environment)
	$(configure) -B build/sanitize -DCMAKE_BUILD_TYPE=Sanitize -DCMAKE_CXX_FLAGS_SANITIZE="-O1 -g1" \
	  -DCLEBSCH_PYTHON=OFF -DCLEBSCH_SANITIZE=address,undefined
	$(cmake) --build build/sanitize --target clebsch_tests
	$(ctest) build/sanitize

# The kernels of the GPU on the emulator under ThreadSanitizer: barriers order what threads do, nothing else. Tests
# of the CPU's kernels in the same files are left out.
races: develop
	@$(cmake) --build build/develop --target clebsch_races
	build/develop/csrc/tests/clebsch_races races_ emulated_

# Incremental: compiles what changed and puts the libraries beside the Python sources.
develop: $(environment)
	@$(configure) -B build/develop -DCMAKE_BUILD_TYPE=Release \
	  -Dpybind11_DIR="$$($(PYTHON) -m pybind11 --cmakedir)"
	@$(cmake) --build build/develop
	@$(cmake) --install build/develop --prefix python

benchmark: develop
	$(if $(environment),$(PYTHON) -m pip install -q -c constraints.txt $(editable)'.[benchmark]')
	$(run) -m benchmarks $(ARGS)

wheel: $(environment)
	$(PYTHON) -m build --outdir dist

# What a user would install: wheel, sdist and source tree, put into an environment with numpy and torch only.
test-package: $(environment)
	$(PYTHON) -m pytest tests/package_install.py

lint: $(environment)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(bin)clang-format --dry-run -Werror $(cxx)

format: $(environment)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	$(bin)clang-format -i $(cxx)

clean:
	rm -rf build dist demo-output python/clebsch/*.so

# wheel.cmake=false: the environment gets the dependencies and the sources in place; `develop` builds.
editable := --config-settings=wheel.cmake=false --config-settings=editable.mode=inplace -e
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(BASE) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "clebsch needs Python 3.10 to 3.13; choose one with make BASE=python3.x"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "clebsch needs a C++20 compiler (Debian, Ubuntu: apt install g++)"; exit 1; }
	@$(BASE) -c 'import os, sys, sysconfig; \
	  sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	  { echo "clebsch needs the headers of $(BASE) (Debian, Ubuntu: apt install python3-dev)"; exit 1; }
	$(BASE) -m venv $(VENV) || \
	  { echo "making a virtual environment failed (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m pip install -q --upgrade pip
	$(PYTHON) -m pip install -q -c constraints.txt $(editable) '.[demo,develop,test]' || \
	  { echo "installing the dependencies failed; torch is pinned in constraints.txt: if that version is not" \
	         "offered for this platform, put another one >= 2.10 there"; exit 1; }
	if [ "$$(uname -s)" = Linux ]; then $(PYTHON) -m pip install -q --no-deps triton==$(TRITON); fi
	touch $@
