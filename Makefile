# make demo    the main job, on the CPU, with real input: runs/demo/report.html
# make test    lint, types and tests
# make install only what both need, into .venv
# Variables: PYTHON (python3), EXTRA (cuda where there is an NVIDIA GPU, else cpu), WORKERS (2)

PYTHON ?= python3
EXTRA ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
WORKERS ?= 2
BIN := .venv/bin

# Threads that wait must not spin: on two shared cores that costs more than half of the speed.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.PHONY: install demo test lint types clean

install: .venv/installed

# torch goes first, so that what comes after it cannot choose another build.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Blockwright needs Python 3.11 or later: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet 'torch>=2.9,<2.14'
	$(BIN)/pip install --quiet --editable '.[$(EXTRA),dev]'
	touch $@

demo: .venv/installed
	$(BIN)/blockwright run recipes/demo.yaml

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint types
	$(BIN)/pytest -n $(WORKERS)

clean:
	rm -rf .venv build dist *.egg-info runs/demo
