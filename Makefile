# The verbs of this repository; `make` alone lists them. To change how they work:
#   PYTHON=python3.13  another interpreter      FRAMEWORKS=no    leave PyTorch and JAX out of the tests
#   CONFIGURE=-DX=Y    more CMake options       PYTEST="-k nan"  more pytest options
PYTHON     ?= python3
VENV       ?= .venv
FRAMEWORKS ?= yes
TORCH_OLDEST := torch==2.10.0

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find CMakeLists.txt pyproject.toml README.md LICENSE cmake cpp cuda python \
                        -type f -not -name '*.pyc')
FORMATS  = $(shell find cpp cuda python tests bench examples -regex '.*\.\([ch]pp\|cu\)' -not -path '*/build/*')
wanted   = $$($(PY) -c 'import functools, sys, tomllib; print(*functools.reduce(lambda d, k: d[k], \
             sys.argv[1:], tomllib.load(open("pyproject.toml", "rb"))), sep="\n")' $(1))
PRELOAD  = $(foreach lib,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(lib).so))
export PATH := $(abspath $(VENV)/bin):$(PATH)
# With ccache, the wheel, the C++ tests and the bars of CUDA compile each kernel once, for all of them: by a
# compiler of one name, where CMake and the wheel's builder have names of their own.
ifneq ($(shell command -v ccache 2>/dev/null),)
export CMAKE_CXX_COMPILER_LAUNCHER  ?= ccache
export CMAKE_CUDA_COMPILER_LAUNCHER ?= ccache
ifeq ($(origin CXX),default)
export CXX := c++
endif
endif
.PHONY: help demo test test-cpp test-python test-slow matrix test-torch-oldest test-neon defects sanitize gpu-test gpu-bench \
        bench test-cuda cuda-bars nvcc test-jax-oldest test-jax-latest jax-tests \
        example lint format wheel clean doctest frameworks

# Builds one preset and runs its C++ tests.
define cpp_tests
	cmake --preset $(1) $(CONFIGURE)
	cmake --build --preset $(1)
	ctest --test-dir build/$(1) --no-tests=error --output-on-failure --parallel 2
endef
# Installs Debian packages $(2) unless $(1) is there, where that is possible.
debian = @[ -e $(1) ] || ! command -v apt-get >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
         $$sudo apt-get update -qq && $$sudo apt-get install -y -qq $(2); } || echo "$(2) could not be installed"

# The nvcc of the PATH, or that of PyPI's packages in $(VENV).
NVCC = CUDACXX="$$(command -v "$${CUDACXX:-nvcc}" || ls $(abspath $(VENV))/lib/python*/site-packages/nvidia/cu*/bin/nvcc)"

help:  ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*  ## /\1	/p' Makefile | expand -t 14

demo: $(VENV)/installed $(VENV)/with-demo  ## train a small network on handwritten digits with NumPy
	$(PY) -m unshared demo

test: test-cpp test-python  ## all that must pass before a change is taken

test-cpp: $(VENV)/tools doctest  ## build the C++ library and its tests, and run them
	$(call cpp_tests,cpu)

test-python: $(VENV)/installed $(VENV)/with-test $(VENV)/with-bench frameworks  ## install the package and run its Python tests
	$(PY) -m pytest $(PYTEST)

test-slow: $(VENV)/installed $(VENV)/with-test frameworks  ## the Python tests that take minutes
	$(PY) -m pytest -m slow $(PYTEST)

test-torch-oldest:  ## the PyTorch tests with the oldest one supported: gigabytes, PyPI's bring CUDA
	$(MAKE) VENV=.venv-torch-oldest .venv-torch-oldest/installed .venv-torch-oldest/with-test
	.venv-torch-oldest/bin/python -m pip install --quiet $(TORCH_OLDEST)
	.venv-torch-oldest/bin/python -m pytest tests/test_torch_*.py $(PYTEST)

test-jax-oldest:  ## the tests of unshared.jax with the oldest jax that is supported
	$(MAKE) VENV=build/jax-oldest JAX="jax==0.6.2 jaxlib==0.6.2" jax-tests

test-jax-latest:  ## the same with the newest jax, which needs Python 3.12 or later
	@python=$$(for p in 3.14 3.13 3.12; do command -v python$$p && break; done); [ -n "$$python" ] || \
	  { echo "no Python of 3.12 or later is on the PATH: the newest jax cannot be had"; exit 1; }; \
	  $(MAKE) VENV=build/jax-latest PYTHON=$$python JAX="jax jaxlib" jax-tests

matrix: $(VENV)/installed $(VENV)/with-test frameworks  ## write docs/transformations-*.md from the tests
	$(PY) tests/matrix.py

test-neon: $(VENV)/tools doctest  ## the C++ tests for AArch64, cross-compiled and run under QEMU
	$(call debian,/usr/bin/aarch64-linux-gnu-g++,g++-aarch64-linux-gnu qemu-user)
	$(call cpp_tests,neon)

test-cuda: nvcc doctest  ## the C++ tests in a build with CUDA, and its bars: needs an nvcc, no GPU
	$(NVCC) cmake --preset gpu $(CONFIGURE)
	$(call cpp_tests,gpu)

cuda-bars: nvcc doctest  ## of that only: compile the CUDA kernels, look at what nvcc made of them
	$(NVCC) cmake --preset gpu $(CONFIGURE)
	cmake --build --preset gpu --target unshared_cuda cuda_occupancy
	ctest --test-dir build/gpu -R check_cuda_objects --no-tests=error --verbose

defects: $(VENV)/installed $(VENV)/with-test doctest  ## plant defects in a copy and see the tests catch each
	$(PY) tests/seeded_defects.py

sanitize: $(VENV)/with-test doctest  ## C++ and Python tests under AddressSanitizer and UBSan
	$(call cpp_tests,sanitize)
	$(PIP) install --no-build-isolation --upgrade --target build/sanitize-site \
	  --config-settings=build-dir=build/sanitize-wheel --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.UNSHARED_SANITIZE=address,undefined,float-cast-overflow --no-deps .
	LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(abspath build/sanitize-site) \
	  $(PY) -m pytest $(PYTEST)

gpu-test: $(VENV)/installed $(VENV)/with-test doctest  ## on a machine with a GPU: bits, streams, graphs, adapters, sanitizer
	cmake --preset gpu $(CONFIGURE) && cmake --build --preset gpu || echo "its C++ tests are not run"
	$(PY) tests/check_gpu.py

gpu-bench: $(VENV)/installed $(VENV)/with-bench  ## on a machine with a GPU and PyTorch for it: times beside ceilings and peers, checked
	$(PY) bench/gpu.py ours
	$(PY) bench/gpu.py peers

bench: $(VENV)/installed $(VENV)/with-bench  ## time the three faces on this machine
	$(PY) -m unshared bench

example: $(VENV)/installed  ## build examples/cpp with find_package against the installed wheel
	cmake -G Ninja -S examples/cpp -B build/example \
	  -Dunshared_DIR="$$($(PY) -c 'import unshared; print(unshared.cmake_dir())')"
	cmake --build build/example
	build/example/example

lint: $(VENV)/installed $(VENV)/with-lint  ## style, formatting and types, without changing a file
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(FORMATS)
	$(PY) -m mypy -p unshared

format: $(VENV)/with-lint  ## format Python and C++ in place
	ruff check --fix .
	ruff format .
	clang-format -i $(FORMATS)

wheel: $(VENV)/tools  ## sdist and, built from it, the wheel, into dist/
	$(PY) -m build --config-setting=cmake.define.UNSHARED_XLA_API=0.1

clean:  ## remove what was built (.venv stays)
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# --- what the verbs stand on ----------------------------------------------------------------------
$(VENV)/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "$(call wanted,build-system requires)" >$(VENV)/build-requires.txt
	$(PIP) install build cmake ninja -r $(VENV)/build-requires.txt && touch $@

$(VENV)/with-%: $(VENV)/tools
	$(PIP) install $(call wanted,project optional-dependencies $*) && touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	CMAKE_ARGS="$(CONFIGURE)" $(PIP) install --no-build-isolation --config-settings=build-dir=build/wheel . && touch $@

# Built with the oldest headers, where those can be had, and tested with another jax.
jax-tests: $(VENV)/tools
	$(PY) -c "import jaxlib" 2>/dev/null || $(PIP) install jaxlib
	$(MAKE) VENV=$(VENV) $(VENV)/installed $(VENV)/with-test
	$(PIP) install --upgrade $(JAX) flax flatbuffers
	$(PY) -m pytest tests/test_jax_*.py $(PYTEST)

nvcc: $(VENV)/tools $(VENV)/with-cuda-bars
	@command -v "$${CUDACXX:-nvcc}" || $(MAKE) VENV=$(VENV) $(VENV)/with-nvcc

doctest:
	$(call debian,/usr/include/doctest/doctest.h,doctest-dev)

frameworks: $(VENV)/tools  # no triton: PyPI's PyTorch would bring gigabytes of CUDA libraries along
	@echo 'triton==0' > $(VENV)/cpu-only.txt
	@[ $(FRAMEWORKS) = no ] || for name in $(call wanted,project optional-dependencies test-frameworks); \
	  do $(PIP) install --only-binary :all: -c $(VENV)/cpu-only.txt "$$name" || \
	  echo "no CPU build of $$name could be installed: the tests that need it are skipped"; done
