# Two commands matter: `make serve` and `make test`. Everything else serves them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= qwen-demo
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=

.PHONY: install install-dev serve test lint clean

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# torch first and pinned: left to the resolver, it would bring gigabytes of CUDA libraries to machines without a GPU.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

serve: $(VENV)/.installed
	$(BIN)/qwen-server serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info demo/.cache
