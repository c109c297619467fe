# `make demo` and `make test` set up everything they need in .venv by themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime-gpu cannot live beside onnxruntime.
PROVIDER_VENV := .venv-provider
# Two test processes of one thread each use two cores better than one process of two.
WORKERS ?= 2
# setuptools warns that an editable installation depends on the folder, which is meant; tests/whole/test_install.py reads the
# other warnings.
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# The first Python that is new enough and can make one; some systems leave venv out. What an earlier attempt left in the folder is cleared.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
define make_venv
@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && $$python -m venv --clear $(1) && exit 0; \
done; echo "Python 3.11 or newer with its module venv is needed and was not found: make PYTHON=/path/to/it" >&2; exit 1
endef
# An environment without pip, or of an older Python, is what a failed attempt leaves behind: it is made anew.
ifneq ($(shell $(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null && echo usable),usable)
.PHONY: $(VENV)/bin/python
$(VENV)/.demo $(VENV)/.dev: $(VENV)/bin/python
endif

.PHONY: demo test test-full test-provider lint format clean

demo: $(VENV)/.demo
	$(BIN)/python -m tools.demo demo

test: lint
	$(PYTEST)

test-full: $(VENV)/.dev
	$(PYTEST) -m "full or not full"

# A worker keeps what it observed of one bundle, so a bundle's tests stay together.
test-provider $(PROVIDER_VENV)/.ready: BIN := $(PROVIDER_VENV)/bin
test-provider: $(PROVIDER_VENV)/.ready
	$(PYTEST) --dist loadgroup tests/provider

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) '.[cpu,export]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/.demo

$(PROVIDER_VENV)/.ready: pyproject.toml
	$(call make_venv,$(PROVIDER_VENV))
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) '.[dev-provider]'
	touch $@

clean:
	rm -rf $(VENV) $(PROVIDER_VENV) build demo *.egg-info
