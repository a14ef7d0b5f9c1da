# Two commands matter: `make serve` and `make test`. Everything else serves them; `make help` says what can be set.

# A python3 that is too old (Ubuntu 22.04 has 3.10) may have a newer one beside it.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
endif
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= qwen-demo
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
# CPU=1 leaves out the CUDA libraries that torch brings on Linux.
CPU ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help install install-dev serve test lint clean

help:
	@echo "make serve     installs into $(VENV) and starts the server"
	@echo "  MODEL=PATH   a checkpoint's folder or hub id    (default: qwen-demo, which comes along)"
	@echo "  PORT=8001    another port                       (default: 8000)"
	@echo "  HOST=0.0.0.0 for other machines too             (default: 127.0.0.1)"
	@echo "  ARGS='...'   more flags of qwen-server serve"
	@echo "  CPU=1        installs 1.3 GB instead of 4.8: torch without CUDA"
	@echo "make install   only installs"
	@echo "make test      runs the tests;  make lint  ruff and mypy;  make clean  removes $(VENV)"

serve: $(VENV)/.installed
	@$(BIN)/qwen-server serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# What an environment is made with, or what to do about it. uv, where it is installed, brings a Python of its own.
define make_venv
problem=; \
if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	problem="qwen-server needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)"; \
	remedy="install a newer one (on Ubuntu 22.04: sudo apt install python3.11 python3.11-venv)"; \
elif ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	problem="$(PYTHON) has no venv module"; \
	remedy="install it (on Debian and Ubuntu: sudo apt install python3-venv)"; \
fi; \
if [ -z "$$problem" ]; then $(PYTHON) -m venv $(VENV); \
elif command -v uv >/dev/null; then echo "$$problem: uv makes the environment"; uv venv --seed --python 3.12 $(VENV); \
else \
	echo "$$problem. Either $$remedy and run make again," >&2; \
	echo "or install uv (https://docs.astral.sh/uv), which brings a Python, and run make again." >&2; exit 1; \
fi
endef

# torch first and pinned: left to the resolver, it would bring gigabytes of CUDA libraries to machines without a GPU.
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || { echo "1/3 making $(VENV)"; $(make_venv); }
ifdef CPU
	@echo "2/3 installing $(TORCH) without CUDA (0.2 GB to fetch, 0.8 GB on disk)"
	@$(PIP) --extra-index-url $(TORCH_INDEX) "$(TORCH)+cpu"
else
	@echo "2/3 installing $(TORCH) (on Linux with CUDA: 2.5 GB to fetch, 4.3 GB on disk; CPU=1 leaves CUDA out)"
	@$(PIP) "$(TORCH)"
endif
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py
	@echo "3/3 installing qwen-server and what it needs (0.1 GB to fetch, 0.5 GB on disk)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml setup.py
	@echo "3/3 installing qwen-server and what its tests need"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# The tests start some two hundred processes: each would compile the sources anew.
test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info demo/.cache
