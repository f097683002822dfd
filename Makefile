# Everything runs in .venv, which the first target makes. Only Python (3.11 or later) with pip is needed; the quick
# start also uses apt-get, without root, for its pictures.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart mixture test lint types assets docs slow clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

# The constraints pin every version, so two machines get the same environment. torch comes first and alone: a range
# would let pip take a newer build with gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("opsin needs Python 3.11 or later; this is " + sys.version.split()[0] + \
	". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep ^torch== constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed     ## make the environment, .venv

quickstart: $(VENV)/.installed  ## train and evaluate a small vision-language model on real pictures (OUT=runs/quickstart)
	$(BIN)/opsin quickstart --out $(OUT)

mixture: OUT = runs/mixture
mixture: $(VENV)/.installed     ## check, plan, inspect and train a small mixture of all modalities (OUT=runs/mixture)
	$(BIN)/python -m opsin.quickstart.mixture $(OUT)
	$(BIN)/opsin data check $(OUT)/data/*.json* $(OUT)/data/*.parquet $(OUT)/data/*.tar --decode
	$(BIN)/opsin plan $(OUT)/recipe.yaml
	$(BIN)/opsin inspect $(OUT)/recipe.yaml --out $(OUT)/page.html
	$(BIN)/opsin train $(OUT)/recipe.yaml --out $(OUT)/run

test: lint types  ## lint, types and the test suite
	$(BIN)/python -m pytest

slow: $(VENV)/.installed        ## the slow tests, and those that fetch assets
	$(BIN)/python -m pytest -m 'slow or network'

lint: $(VENV)/.installed        ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed       ## mypy --strict on the package
	$(BIN)/mypy

assets: $(VENV)/.installed      ## fetch the quick start's assets ahead of time
	$(BIN)/python -m opsin.quickstart.assets

docs: $(VENV)/.installed        ## check what the documentation shows: recipes, commands, links
	$(BIN)/python -m pytest tests/test_docs.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
