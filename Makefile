# Every target does all the set-up that it needs.
VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
RNC := $(VENV)/bin/rnc
READY := $(VENV)/.ready
READY_DEPLOY := $(VENV)/.ready-deploy
COMPILE := $(UV) pip compile --universal --generate-hashes --no-annotate --python-version 3.11 \
	--custom-compile-command "make lock" --quiet --upgrade

# Two processes; half of the tests wait for processes of their own. tests/conftest.py says what runs beside what.
PYTEST := $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Of `make soak`: random kills after the matrix, the most minutes for them, their seed (0 draws one), a file for the table.
KILLS := 0
MINUTES := 1000
SEED := 0
TABLE :=

# Bytecode makes MLflow and Ray start three to ten times faster.
unexport PYTHONDONTWRITEBYTECODE
# A third of all sources: tests, and parts that a training does not import. Python compiles them when it meets them.
UNCOMPILED := /(tests?|_inductor|databricks|fontTools|llm|mypyc?|networkx|pip|rllib|serve|sklearn)/

.PHONY: help setup demo test test-public test-deploy check soak bench bench-scale ui lock clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## Make .venv with everything that the project needs

demo: $(READY)  ## Train the paper's main comparison in miniature and print its tables (4 to 7 minutes, no GPU)
	$(RNC) submit experiments/demo

test: $(READY)  ## Run all tests but those of deploy/
	$(PYTEST) --ignore tests/deploy

test-public: $(READY)  ## Run the trainings of the tests once more, by Ray's public trainer, as other versions of Ray do
	RNC_RAY_FAST_PATH=0 $(PYTHON) -m pytest tests/system

test-deploy: $(READY_DEPLOY)  ## Start the real cluster's parts and run a table on them, validate the rest of deploy/
	$(PYTHON) -m pytest tests/deploy --durations 0 --durations-min 1

check: $(READY)  ## Format, lint, types and the fast tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTEST) -m "not slow" -q --ignore tests/deploy

soak: $(READY)  ## Kill the parts of tiny suites in all 40 ways, then KILLS times at random (KILLS=100 SEED=7 MINUTES=60)
	$(PYTHON) -m tests.faults --kills $(KILLS) --minutes $(MINUTES) --seed $(SEED) --table "$(TABLE)"

bench: $(READY)  ## Measure speed and memory beside torchvision, pycocotools, and the bare training loop (21 minutes)
	$(PYTHON) experiments/benchmarks/train_step.py
	$(PYTHON) experiments/benchmarks/class_losses.py
	$(PYTHON) experiments/benchmarks/inference.py
	$(PYTHON) experiments/benchmarks/predict.py
	$(PYTHON) experiments/benchmarks/one_pass.py
	$(PYTHON) experiments/benchmarks/evaluation/coco_metrics.py
	$(PYTHON) experiments/benchmarks/evaluation/bootstrap.py
	$(PYTHON) experiments/benchmarks/evaluation/misalignment.py
	$(PYTHON) experiments/benchmarks/loading/loading.py
	$(PYTHON) experiments/benchmarks/orchestration/sharded_scoring.py
	$(PYTHON) experiments/benchmarks/orchestration/overhead.py

bench-scale: $(READY)  ## Measure what a suite of 2,000 runs costs to read, plan and look at (2 minutes)
	$(PYTHON) experiments/benchmarks/orchestration/scale.py

ui: $(READY)  ## Open the MLflow UI on what was recorded
	$(RNC) ui

lock: $(READY)  ## Resolve the lock files anew from pyproject.toml and the requirements.in files
	$(COMPILE) --group dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --output-file deploy/docker/mlflow/requirements.lock \
		deploy/docker/mlflow/requirements.in
	$(COMPILE) --constraint requirements.lock --constraint deploy/docker/mlflow/requirements.lock \
		--output-file deploy/ray-up/requirements.lock deploy/ray-up/requirements.in
	$(COMPILE) --constraint requirements.lock --output-file tests/deploy/requirements.lock tests/deploy/requirements.in

clean:  ## Remove the environment; ./runs stays
	rm -rf $(VENV)

$(READY): requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: python3 is $$(python3 --version), 3.11 or newer is needed"; exit 2; }
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --python $(VENV) --require-hashes --requirements requirements.lock
	$(PYTHON) -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib || true  # some sources are of a newer Python
	$(UV) pip install --quiet --python $(VENV) --no-deps --no-build-isolation --editable .
	@touch $@

$(READY_DEPLOY): $(READY) tests/deploy/requirements.lock tests/deploy/programs.sh
	$(UV) pip install --quiet --python $(VENV) --compile-bytecode --require-hashes --requirements tests/deploy/requirements.lock
	tests/deploy/programs.sh
	@touch $@
