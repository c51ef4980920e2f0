# Everything a new machine needs is Python 3.11 or newer, make, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint docs clean

quickstart: $(VENV)/ready
	$(BIN)/clipkit quickstart

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/ready
	$(BIN)/python -m tests.test_docs > docs/settings.md.new && mv docs/settings.md.new docs/settings.md
	$(BIN)/python -m tests.evals.test_catalogue > docs/evaluation_settings.md.new && mv docs/evaluation_settings.md.new docs/evaluation_settings.md

# uv resolves torch and torchvision together; pip may take builds of them that do not fit each other. Compiled once here:
# where PYTHONDONTWRITEBYTECODE is set, each start of a process would compile for half a minute
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "clipkit needs Python 3.11 or newer, $(PYTHON) is older; type: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
