# make demo    the main job, on the CPU, with real input: runs/demo/report.html
# make test    lint, types and tests; these install CLIENTS too: who loads what we write for others, Ray, …
# make install only what make demo needs, into .venv
# Variables: PYTHON (python3), EXTRA (cuda where there is an NVIDIA GPU, else cpu), WORKERS (2), CLIENTS (the extras)

PYTHON ?= python3
EXTRA ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
WORKERS ?= 2
# Measured on two cores, into an .venv that is there: 2 minutes in all, and none of them brings another torch.
CLIENTS ?= gguf,clients,genai,tensorrt-rtx,triton,distributed,eval,tune,bench
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

# torch is held where it is, so that no client can choose another build.
.venv/tested: .venv/installed
	$(BIN)/pip freeze --exclude-editable | grep -i '^torch==' > .venv/torch.txt
	$(BIN)/pip install --quiet --constraint .venv/torch.txt --editable '.[$(EXTRA),dev,$(CLIENTS)]'
	touch $@

demo: .venv/installed
	$(BIN)/blockwright run recipes/demo.yaml

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

# A file stays in one worker, which makes what its tests share once; files go out in order, and the last are quick.
test: .venv/tested lint types
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv build dist *.egg-info runs/demo
