# make demo   panels of the example photos, from nothing but Python >= 3.10
# make test   the default test suite; make test-slow the rest; make test-oldest with the oldest timm
#             and huggingface_hub
# make check  linters and types; make bench what denoising costs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := timm==1.0.21 huggingface_hub==1.26.0

.PHONY: demo test test-slow test-oldest check bench clean

demo: $(VENV)/installed
	$(BIN)/dvt-timm features examples/data/cat.jpg examples/data/puppy.jpg --out demo-output

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

test-oldest: $(VENV)/oldest/installed
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest -n auto

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python examples/benchmarks/forward.py

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml setup.cfg
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[clients,dev,export]'
	touch $@

$(VENV)/oldest/installed: $(VENV)/installed-dev Makefile
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target $(@D) $(OLDEST)
	$(BIN)/python -m pip install --disable-pip-version-check -q --target $(@D) 'httpx<1'
	touch $@
