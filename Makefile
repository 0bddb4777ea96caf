# Every target does all the set-up that it needs.
VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
RNC := $(VENV)/bin/rnc
READY := $(VENV)/.ready

# Bytecode makes MLflow and Ray start three to ten times faster.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check bench ui lock clean

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## Make .venv with everything that the project needs

demo: $(READY)  ## Train the paper's main comparison in miniature and print its tables (5 minutes, no GPU)
	$(RNC) submit experiments/demo

test: $(READY)  ## Run all tests
	$(PYTHON) -m pytest

check: $(READY)  ## Format, lint, types and the fast tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -m "not slow" -q

bench: $(READY)  ## Measure speed and memory beside torchvision, pycocotools, and the bare training loop (20 minutes)
	$(PYTHON) experiments/benchmarks/train_step.py
	$(PYTHON) experiments/benchmarks/inference.py
	$(PYTHON) experiments/benchmarks/one_pass.py
	$(PYTHON) experiments/benchmarks/evaluation.py
	$(PYTHON) experiments/benchmarks/bootstrap.py
	$(PYTHON) experiments/benchmarks/misalignment.py
	$(PYTHON) experiments/benchmarks/loading.py
	$(PYTHON) experiments/benchmarks/sharded_scoring.py
	$(PYTHON) experiments/benchmarks/overhead.py

ui: $(READY)  ## Open the MLflow UI on what was recorded
	$(RNC) ui

lock: $(READY)  ## Resolve requirements.lock anew from pyproject.toml
	$(UV) pip compile --universal --generate-hashes --no-annotate --group dev --python-version 3.11 \
		--custom-compile-command "make lock" --quiet --upgrade --output-file requirements.lock pyproject.toml

clean:  ## Remove the environment; ./runs stays
	rm -rf $(VENV)

$(READY): requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: python3 is $$(python3 --version), 3.11 or newer is needed"; exit 2; }
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --python $(VENV) --compile-bytecode --require-hashes --requirements requirements.lock
	$(UV) pip install --quiet --python $(VENV) --no-deps --no-build-isolation --editable .
	@touch $@
