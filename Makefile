# `make VENV=DIR ...` uses an environment that is there; by default .venv is made (PyTorch takes about 7 GB).
VENV ?= .venv
PYTHON ?= python3

BIN := $(VENV)/bin
STAMP := $(VENV)/.dcl-installed
TORCH := torch==2.14.1 torchvision==0.29.1
OLDEST := .venv-oldest/bin

# On a CPU, threads that wait must not spin for long, and malloc must keep the large blocks it has instead of returning
# them to the system at every step.
export GOMP_SPINCOUNT ?= 100000
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
export MALLOC_TOP_PAD_ ?= 536870912

.PHONY: help demo app demo-table test test-slow test-oldest gpu benchmarks lint docs figures clean

help:  ## Show what there is to make.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamp names the checkout that is installed: an environment that another one used is made to follow this one.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml requirements.txt | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1'
	$(BIN)/python -c 'import torch, torchvision' 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[train,trackers,cluster,lmdb,metrics,onnx,report,app]' --group dev
	@echo '$(CURDIR)' > $@

demo: $(STAMP)  ## Prepare the demo data, train, evaluate on unseen people, and print the table.
	$(BIN)/dcl-prepare demo --output data/demo
	$(BIN)/dcl-prepare assets efficientnet_lite0 --output data/assets
	$(BIN)/python train.py -c configs/demo.yaml
	$(BIN)/python evaluate_dcl.py --model runs/demo --data_root data --dataset demo --output_dir runs/demo/evaluation --report
	$(BIN)/python benchmarks/abstention.py --model runs/demo --check

app: $(STAMP)  ## Start the app on this machine, with the demo's checkpoint or that of DCL_MODEL.
	env -u MALLOC_MMAP_THRESHOLD_ -u MALLOC_TRIM_THRESHOLD_ -u MALLOC_TOP_PAD_ $(BIN)/python app.py

demo-table: $(STAMP)  ## Compare a linear probe, cross-entropy alone and DCL on the same data and budget.
	$(BIN)/dcl-prepare demo --output data/demo
	$(BIN)/dcl-prepare assets efficientnet_lite0 --output data/assets
	$(BIN)/python benchmarks/demo_table.py

test: $(STAMP)  ## Run the tests that a change must pass.
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)  ## Run the tests that take longer.
	$(BIN)/python -m pytest -n 2 -m slow

# uv installs the lowest versions that pyproject.toml and requirements.txt allow, and the newest of what those need;
# UV_TORCH_BACKEND=cpu takes PyTorch's smaller wheels for the CPU.
test-oldest:  ## Run the tests of model, training, evaluation and detection with the oldest dependencies that are allowed.
	test -x $(OLDEST)/uv || { $(PYTHON) -m venv .venv-oldest && $(OLDEST)/python -m pip install 'uv>=0.9,<1'; }
	$(OLDEST)/uv pip install --upgrade --python $(OLDEST)/python --resolution lowest-direct \
		--editable '.[train,metrics,onnx,report]' --group test
	$(OLDEST)/python -m pytest -n 2 -m "not slow" tests/modeling_dcl \
		tests/test_pipeline_dcl.py tests/video_dcl tests/training tests/evaluation tests/detection

gpu: $(STAMP)  ## Run the tests and benchmarks that need a GPU, in less than ten minutes.
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/report.py

benchmarks: $(STAMP)  ## Make docs/benchmarks.md of the results that are kept in benchmarks/results.
	$(BIN)/python benchmarks/report.py

lint: $(STAMP)  ## Check style, formatting and spelling.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

docs: $(STAMP)  ## Build the documentation as a website in build/docs; a warning is an error.
	$(BIN)/python -c 'import furo, myst_parser, sphinx_copybutton' 2>/dev/null || $(BIN)/python -m pip install --group docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/docs
	@echo 'The documentation is in build/docs/index.html.'

figures: $(STAMP)  ## Draw the figure of the method.
	$(BIN)/python docs/method_figure.py

clean:  ## Remove what was built; data, runs and the environment stay.
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
