# Two commands that do all their own set-up: `make sweep` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: sweep test lint types docs site clean

sweep: $(VENV)/.installed
	$(BIN)/tmbench sweep --out results/demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# The types on one core while the tests begin on the others.
	$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n auto --dist loadfile; tests=$$?; wait $$types && exit $$tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-dev
	$(BIN)/mypy

PHOTOGRAPHS = experiments/results/photographs
docs: $(VENV)/.installed
	$(BIN)/tmbench audit $(PHOTOGRAPHS)/table1 $(PHOTOGRAPHS)/table2 $(PHOTOGRAPHS)/fig4 $(PHOTOGRAPHS)/averaging_attention \
		$(PHOTOGRAPHS)/placement $(PHOTOGRAPHS)/connectivity $(PHOTOGRAPHS)/similarity $(PHOTOGRAPHS)/k_schedule \
		$(wildcard $(PHOTOGRAPHS)/crops/*) experiments/results/embedded/fig1 experiments/results/embedded/table2 --out docs
	$(BIN)/tmbench run fig2 --dataset demo --out results/fig2-demo
	$(BIN)/tmbench figures results/fig2-demo --only fig2,fig3 --formats png,svg --out docs/figures/explained

site: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/site
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@ $(VENV)/.installed
