# Two commands are enough on a fresh machine: `make train` and `make test`. Both set up .venv first, once.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NATIVE := $(shell find cpp CMakeLists.txt -type f)
FORMATTED := $(shell find cpp -name '*.[ch]pp')

.PHONY: help setup train test test-slow test-native check stubs format bench results wheel clean

help:
	@echo "make train       set up, train DQN on CartPole-v1 to its threshold, show the result"
	@echo "make test        set up, run the fast tests (Python, then the native core under sanitizers)"
	@echo "make test-slow   the tests that take minutes"
	@echo "make check       formatting, lint, types, layers"
	@echo "make bench       measure the buffer against a C floor, the update against a library where installed"
	@echo "make results     train every preset over 3 seeds, write docs/results.md"
	@echo "make wheel       build a portable wheel into dist/"

# Everything is installed once. A change in the native code builds the extension again; one in the two files named first
# installs the dependencies again.
$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	@$(if $(filter pyproject.toml constraints.txt,$?),$(install_all),$(build_core))
	@touch $@

define install_all
command -v c++ >/dev/null || { echo "make: expected a C++ compiler, found none. apt-get install g++"; exit 1; }; \
echo "Setting up $(VENV): a few minutes, once"; \
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) && \
$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core nanobind numpy cmake ninja && \
$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[train,dev]'
endef

define build_core
echo "Building the native core" && \
$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
endef

setup: $(VENV)/.installed

train: setup
	@$(BIN)/relive train CartPole-v1

test: setup
	@$(BIN)/python -m pytest -m "not slow"
	@$(MAKE) --no-print-directory test-native

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The core builds and tests without Python: plainly, then under the sanitizers. Tests that kill processes are built
# without sanitizers in both: once is enough.
test-native: setup
	@for preset in asan tsan; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset $$preset >build/$$preset.log 2>&1 \
		&& PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build --preset $$preset >>build/$$preset.log 2>&1 \
		|| { cat build/$$preset.log; exit 1; }; \
		PATH="$(CURDIR)/$(BIN):$$PATH" ctest --preset $$preset $$([ $$preset = asan ] || echo "-E kill") || exit 1; \
	done

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/python -m nanobind.stubgen -q -m relive._core -o build/_core.pyi && diff -u src/relive/_core.pyi build/_core.pyi

# Rewrites what `make check` would complain about.
format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(FORMATTED)

stubs: setup
	$(BIN)/python -m nanobind.stubgen -q -m relive._core -o src/relive/_core.pyi

bench: setup
	$(BIN)/python benchmarks/bench_buffer.py
	$(BIN)/python benchmarks/bench_update.py
	$(BIN)/python benchmarks/bench_save.py

results: setup
	$(BIN)/python benchmarks/results.py

# Portable: nothing beyond the baseline of the architecture, tagged with the oldest system it runs on, and tried in an
# environment of its own, where no compiler can be found.
wheel: setup
	@rm -rf build/wheel build/wheel-venv dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl 2>&1 | tail -n 1
	@$(PYTHON) -m venv build/wheel-venv
	@build/wheel-venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	@cd build && PATH=/nonexistent wheel-venv/bin/python ../examples/first_steps.py

clean:
	rm -rf build dist $(VENV)
