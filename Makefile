# One command each. Every target makes its own .venv when it is missing.
#
#   make serve      install and run the service with the shipped weights
#   make test       install and pass the tests
#   make lint | test-slow | audit | train | pack | evaluate | bench | bench-peers | weights
#
# TORCH_INDEX_URL=<url>  an index with the torch build you want; the default index's torch is a
#                        CUDA build of several GB
# ARGS="..."             passed on to the command

.DELETE_ON_ERROR:
.SHELLFLAGS := -eu -c

PYTHON ?= python3
TORCH_INDEX_URL ?=
ARGS ?=
DATA ?= $(PURNET_DATA)

VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := model/purnet/weights/purnet-lite0-gc
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --constraint constraints.txt
# What a service needs: torch where there is an NVIDIA GPU, else OpenVINO alone.
ENGINE ?= $(if $(shell command -v nvidia-smi),torch,openvino)

.PHONY: serve test test-slow audit lint format docs screenshots train pack evaluate bench bench-peers weights clean

serve: $(VENV)/.serve-$(ENGINE)
	@exec $(BIN)/purnet serve $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	printf '%s\n' 3.11 3.12 3.13 | xargs -P 2 -I{} $(BIN)/mypy --python-version {}
	$(BIN)/lint-imports

# Known faults of the pinned dependencies, where an index of them can be reached.
audit: $(VENV)/.dev
	$(BIN)/python -m pip --disable-pip-version-check install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip $(ARGS) || \
		{ echo "A fault was found above, or the index of faults could not be reached." >&2; exit 1; }

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes what the docs take from the code, the tables of settings and errors, and what the manifests
# of Kubernetes take from elsewhere: rules, alerts, the configuration of Ray Serve.
docs: $(VENV)/.dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docker/kubernetes/make_manifests.py

# Draws the pictures of the web page in docs/page.
screenshots: $(VENV)/.dev
	$(BIN)/python docs/make_screenshots.py

train: $(VENV)/.dev
	$(BIN)/purnet train --data $(or $(DATA),$(error say where the data is: make train DATA=DIR))/train \
		--out runs/lite0 $(ARGS)

# Packs the recipe's training pairs into pieces for benchmarks/gpu_training.sh.
pack: $(VENV)/.dev
	$(BIN)/python -m purnet.training.pack --data $(or $(DATA),$(error say where the data is: make pack DATA=DIR OUT=DIR))/train \
		--out $(or $(OUT),$(error say where the pieces go: make pack DATA=DIR OUT=DIR)) $(ARGS)

evaluate: $(VENV)/.dev
	$(BIN)/purnet evaluate --dataset $(or $(DATA),$(error say where the data is: make evaluate DATA=DIR))/test/sod226 $(ARGS)

# Puts the best weights of a run's last stage, or their mean with those of the files in AVERAGE_WITH,
# in the place of the shipped ones, with all that is made of them but the page's screenshots. ARGS go
# to `purnet convert`, such as --scale-logits 2.
weights: $(VENV)/.dev
	$(BIN)/purnet convert --half $(ARGS) $(foreach file,$(AVERAGE_WITH),--average-with $(file)) \
		$(or $(lastword $(sort $(wildcard $(RUN)/stage*-best.safetensors))),$(error say which run: make weights RUN=runs/lite0)) \
		$(WEIGHTS).safetensors
	rm -rf $(WEIGHTS)-openvino
	$(BIN)/purnet export $(WEIGHTS).safetensors -o $(WEIGHTS)-openvino
	$(BIN)/python docs/make_picture.py
	$(BIN)/python docs/make_sample.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.load $(ARGS)

# The service beside other servers: ARGS="install", then "run --photos DIR", then "report FILE".
bench-peers: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.peers $(or $(ARGS),--help)

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the service (engine: $*) into $(VENV) ..."
	@$(PIP) --editable '.[$*]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what development needs into $(VENV) (several GB: torch) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@
