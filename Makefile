# Everything runs in .venv, which `make setup` builds from nothing with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo serve-demo test lint paper clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/safelens moderate samples/*.mp4 --report out/demo.html
	@echo "Report: out/demo.html"

serve-demo: setup
	$(BIN)/python -m recipes.serve_demo

test: lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

paper: setup
	$(BIN)/python -m benchmarks.paper --grid

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache .mypy_cache
