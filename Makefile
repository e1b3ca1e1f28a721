# Each target needs only Python 3.10 or newer and make: it builds its environment in `.venv` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-lowest lint format docs dist clean

demo: $(VENV)/.installed
	$(BIN)/python recipes/quickstart/run.py

# Files are shared out among the cores: the tests of a file use the same models.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow"

# The tests that take longer, most of them with several processes each.
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The smoke tests with the lowest version of each range in pyproject.toml, which uv finds, in an environment of their own.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable . "pytest>=8.2"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m smoke tests/test_smoke.py

# The wheel and the source archive, in `dist/`.
dist:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build
	.venv-dist/bin/python -m build

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Into `site/`, without a network. The variable silences an advertisement of another tool.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-lowest .venv-dist outputs site build dist src/*.egg-info

$(VENV)/.installed: pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
