# `make train` and `make test` need only Python 3.11 or newer: each sets up .venv by itself, once.
# Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup train pipeline test lint cpp cpp-test clean

help:
	@echo "make train   train the default net, export a bundle, predict with it, say where the pictures are"
	@echo "make pipeline  train, compress, export, evaluate, register and serve a small net, and look whether it answers"
	@echo "make test    lint, type check and all tests"
	@echo "make lint    lint and format check only"
	@echo "make cpp     the C++ library and cellvision_predict, into build/cpp"
	@echo "make cpp-test  its tests, as built and with sanitizers"
	@echo "make setup   only what both do first: .venv with the pinned packages"
	@echo "make clean   remove caches and build leftovers; keeps .venv and runs/"

setup: $(INSTALLED)

train: $(INSTALLED)
	$(BIN)/python train.py

pipeline: $(INSTALLED)
	$(BIN)/python pipeline.py

test: lint
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Headers come from Debian's packages, once; ONNX Runtime itself is the one of .venv. Elsewhere: see cpp/README.md.
cpp: $(INSTALLED)
	cpp/fetch_dependencies.sh build/cpp-deps
	cd cpp && cmake --preset release -DORT_LIBRARY="$$(ls $(CURDIR)/.venv/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.* | head -n 1)"
	cmake --build build/cpp --parallel $$(getconf _NPROCESSORS_ONLN)

cpp-test: cpp
	$(BIN)/python -m pytest tests/integration/test_cpp*.py
	CELLVISION_CPP_PRESET=sanitize $(BIN)/python -m pytest tests/integration/test_cpp*.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find src tests conf -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than both files once the packages are in place, so a second run asks no network for anything.
# Build isolation is off because it would fetch setuptools again; the lock file already brings it.
$(INSTALLED): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) was not found; need Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$("$(PYTHON)" --version) is too old; need 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
