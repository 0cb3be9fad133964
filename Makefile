# make demo         panels of the example photos, from nothing but Python >= 3.10
# make test         the default test suite
# make test-slow    the rest, the built wheel among it
# make test-browser the page of `dvt-timm explore` in Chromium, which Debian's apt-get installs if need be
# make test-oldest  the default suite with the oldest timm and huggingface_hub
# make check        linters, types, and which room may import which
# make docs         the pages, into site/
# make bench        what denoising costs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST_TIMM := timm==1.0.21
OLDEST_HUB := huggingface_hub==1.26.0
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q

.PHONY: demo test test-slow chromium test-browser test-oldest check docs bench clean

demo: $(VENV)/installed
	$(BIN)/dvt-timm features examples/data/cat.jpg examples/data/puppy.jpg --panels --out demo-output

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

chromium:
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium)

test-browser: chromium $(VENV)/installed-browser
	DVT_TIMM_BROWSER=required $(BIN)/python -m pytest -m browser

test-oldest: $(VENV)/oldest-timm/installed $(VENV)/oldest-hub/installed
	PYTHONPATH=$(VENV)/oldest-timm:$(VENV)/oldest-hub $(BIN)/python -m pytest -n auto
	PYTHONPATH=$(VENV)/oldest-timm $(BIN)/python -m pytest -n auto tests/test_clients.py tests/test_homes.py

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python examples/benchmarks/forward.py

clean:
	rm -rf $(VENV) build dist site demo-output *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml setup.cfg setup.py
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[bench,clients,dev,docs,evaluate,export,parquet,train]'
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-dev
	$(PIP) -e '.[browser]'
	touch $@

$(VENV)/oldest-timm/installed: $(VENV)/installed-dev
	$(PIP) --no-deps --target $(@D) $(OLDEST_TIMM)
	touch $@

$(VENV)/oldest-hub/installed: $(VENV)/installed-dev
	$(PIP) --no-deps --target $(@D) $(OLDEST_HUB)
	$(PIP) --target $(@D) 'httpx<1'
	touch $@
