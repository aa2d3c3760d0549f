SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROTOS := $(wildcard proto/mesh/v1/*.proto)
SOURCES := mesh gateway orchestrator tokenizer inference models scripts tests benchmarks

# Images are built by whichever of these is there; of docker, its daemon.
CONTAINER ?= $(shell { docker info >/dev/null 2>&1 && command -v docker; } || command -v podman || command -v buildah)
TAG ?= 0.1.0
REGISTRY ?= weir
BASE_IMAGE ?= python:3.11-slim-bookworm
# The inference image for cpu or cuda, and where pip finds torch's build for it.
VARIANT ?= cpu
TORCH_INDEX ?=
# A folder made by `make wheels`, for a build without an index; or a pip.conf for one with it.
WHEELS ?=
PIP_CONF ?=
# The date of everything in the images, so that a build can be repeated: 2000-01-01.
SOURCE_DATE_EPOCH ?= 946684800
# More for the tool that builds, such as BUILD_ARGS='--network none'.
BUILD_ARGS ?=
# Where images.tar and the bills of materials go.
ARCHIVE ?= images.tar
SBOM ?= build/sbom
comma := ,
SERVICES := gateway orchestrator tokenizer inference
IMAGES = $(foreach service,$(SERVICES),$(REGISTRY)/$(service):$(TAG)$(if $(filter inference-cuda,$(service)-$(VARIANT)),-cuda))

## help: Lists the targets
.PHONY: help
help:
	@printf 'Weir: language models as four services that stream to each other over gRPC\n\n'
	@sed -n 's/^## \([a-z.-]*\): \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

$(BIN)/python:
	@echo "Making the environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# What a local run needs; the stamp makes the second time free.
$(VENV)/.local: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the four services into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the services and the development tools into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.local

## run-local: Starts the four services on loopback with the demo model (MODEL=… for another, OBSERVABILITY=1 for a trace view)
.PHONY: run-local
run-local: $(VENV)/.local
	@$(BIN)/python -m scripts.run_local

## test: Runs the tests
.PHONY: test
test: $(VENV)/.dev
	@echo "Running the tests"
	@$(BIN)/python -m pytest -q --numprocesses=2 --ignore=tests/chaos

## test-images: Builds the images from a base made here and runs them as the chart does (minutes)
.PHONY: test-images
test-images: $(VENV)/.dev
	@echo "Building and running the images, where containers can run"
	@$(BIN)/python -m pytest -q -m images tests/images

## fuzz: Sends 5,000 requests made from openapi.json to the four services
.PHONY: fuzz
fuzz: $(VENV)/.dev
	@echo "Sending 5,000 requests made from openapi.json"
	@FUZZ_CASES=5000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/e2e/api/test_fuzz.py

## soak: Sends 10,000 requests through one engine, a third of them left early; minutes
.PHONY: soak
soak: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.soak

## chaos: Breaks real processes under load (SEED=… DURATION=… seconds to replay a course)
.PHONY: chaos
chaos: $(VENV)/.dev
	@SEED=$(SEED) DURATION=$(DURATION) $(BIN)/python -m pytest -q tests/chaos

## chaos-short: The same for twenty seconds of one seed
.PHONY: chaos-short
chaos-short: $(VENV)/.dev
	@echo "Breaking real processes for twenty seconds"
	@SEED=1 DURATION=20 $(BIN)/python -m pytest -q tests/chaos/test_faults.py

## lint: Checks style, types, imports and spelling
.PHONY: lint
lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

## fmt: Formats the code and fixes what can be fixed
.PHONY: fmt
fmt: $(VENV)/.dev
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

## proto: Generates mesh/v1 from proto/mesh/v1
.PHONY: proto
proto: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_proto .

## proto-check: Fails if mesh/v1 is not what proto/mesh/v1 generates
.PHONY: proto-check
proto-check: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_proto --check .

## index: Builds the search index of examples/corpus
.PHONY: index
index: $(VENV)/.local
	@mkdir -p .run
	@$(BIN)/python -m orchestrator.index examples/corpus --out .run/corpus.sqlite3

## build: Builds the four images with docker, podman or buildah (docs/images.md has the settings)
.PHONY: build
build:
	@tool="$(CONTAINER)"; \
	test -n "$$tool" || { echo "make build: needs docker, podman or buildah" >&2; exit 1; }; \
	export DOCKER_BUILDKIT=1; \
	revision=$$(git rev-parse HEAD 2>/dev/null || true); \
	for image in $(IMAGES); do \
	  name=$${image%:*}; service=$${name##*/}; \
	  set -- --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg WHEELS=$(WHEELS) \
	    --build-arg VERSION=$(TAG) --build-arg REVISION=$$revision \
	    $(if $(PIP_CONF),--secret id=pip.conf$(comma)src=$(PIP_CONF)) $(BUILD_ARGS); \
	  case $${tool##*/} in \
	    docker) set -- "$$@" --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH);; \
	    *) set -- "$$@" --timestamp $(SOURCE_DATE_EPOCH);; \
	  esac; \
	  if test $$service = inference; then \
	    set -- "$$@" --build-arg VARIANT=$(VARIANT) --build-arg TORCH_INDEX=$(TORCH_INDEX); \
	  fi; \
	  echo "Building $$image with $$tool"; \
	  "$$tool" build "$$@" --file $$service/Dockerfile --tag $$image .; \
	done

## wheels: Collects in wheels/ all that the images are built from, for `make build WHEELS=wheels`
.PHONY: wheels
wheels: wheels/.complete

wheels/.complete: pyproject.toml constraints.txt | $(BIN)/python
	@rm -rf wheels
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --wheel-dir wheels \
	  '.[gateway,orchestrator,tokenizer,inference,image]'
	@rm wheels/weir-*.whl
	@touch $@

## images.tar: Saves the images in one archive, for clusters without a registry
.PHONY: images.tar
images.tar: | $(BIN)/python
	@$(BIN)/python -m scripts.save_images "$(CONTAINER)" $(ARCHIVE) $(IMAGES)
	@echo "$(ARCHIVE) has $(IMAGES); charts/weir/images.txt lists all that the chart can pull"

## sbom: Writes what is in the images of images.tar to build/sbom, in CycloneDX's format
.PHONY: sbom
sbom: $(VENV)/.dev
	@test -e $(ARCHIVE) || $(MAKE) --no-print-directory images.tar
	@$(BIN)/python -m scripts.sbom $(ARCHIVE) $(SBOM)

## chart: Generates the chart's schema, README and list of images from its values.yaml
.PHONY: chart
chart: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_chart charts/weir

## chart-check: Fails if they are not what values.yaml generates
.PHONY: chart-check
chart-check: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_chart --check charts/weir

## ci: What CI runs: lint, types, generated code, tests, faults
.PHONY: ci
ci: lint proto-check chart-check test chaos-short

# helm on PATH, or one that is fetched once.
HELM ?= $(shell command -v helm || $(BIN)/python -m scripts.find_helm)
KIND_CLUSTER ?= weir
NAMESPACE ?= default
# More for helm, such as DEPLOY_ARGS='--set drain.seconds=120'
DEPLOY_ARGS ?=
# 1: with charts/observability beside it, where traces and metrics go.
OBSERVABILITY ?=
TRACES := --set telemetry.endpoint=http://tempo.observability:4317 \
  --set telemetry.queryUrl=http://tempo.observability:3200

## kind-up: Makes a kind cluster out of kind-config.yaml
.PHONY: kind-up
kind-up:
	@kind get clusters 2>/dev/null | grep -qx $(KIND_CLUSTER) \
	  || kind create cluster --name $(KIND_CLUSTER) --config kind-config.yaml --wait 120s

## kind-load: Loads the images that `make build` built with docker into the kind cluster
.PHONY: kind-load
kind-load:
	@kind load docker-image --name $(KIND_CLUSTER) \
	  $(foreach service,gateway orchestrator tokenizer inference,$(REGISTRY)/$(service):$(TAG))

## deploy: Installs or upgrades the chart in the current cluster, with the values for kind
.PHONY: deploy
deploy: $(VENV)/.dev
	@$(if $(OBSERVABILITY),$(HELM) upgrade --install observability charts/observability \
	  --namespace observability --create-namespace --wait --timeout 10m)
	@$(HELM) upgrade --install weir charts/weir --namespace $(NAMESPACE) --create-namespace \
	  --values charts/weir/ci/kind.yaml --wait --timeout 15m \
	  $(if $(OBSERVABILITY),$(TRACES)) $(DEPLOY_ARGS)

## kind-test: Runs the chart's own test in the cluster
.PHONY: kind-test
kind-test: $(VENV)/.dev
	@$(HELM) test weir --namespace $(NAMESPACE) --logs --timeout 10m

## kind-down: Removes the kind cluster
.PHONY: kind-down
kind-down:
	@kind delete cluster --name $(KIND_CLUSTER)

$(VENV)-audit/bin/pip-audit:
	@$(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'

## audit: Looks the pinned dependencies up in the advisory database (needs PyPI itself)
.PHONY: audit
audit: $(VENV)-audit/bin/pip-audit
	@$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict \
	  --progress-spinner off || { echo "audit: findings, or the database cannot be asked" >&2; exit 1; }

## constraints: Pins what is installed now in constraints.txt
.PHONY: constraints
constraints: $(VENV)/.dev
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

## clean: Removes the environment, caches and what a local run made
.PHONY: clean
clean:
	@rm -rf $(VENV) $(VENV)-audit .run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
