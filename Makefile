# The targets for developers, the demo and CI. `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO ?= go
# The same flags for every go command, also those of the tests and of the linter, so that Go compiles each package once.
export GOFLAGS := -trimpath
export CGO_ENABLED := 1

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMG ?= keyconvoy:$(VERSION)
# For hack/image/build.sh: docker, podman or buildah, whichever works if empty; and the base images.
CONTAINER_TOOL ?=
BASE_IMAGES ?=
export CONTAINER_TOOL BASE_IMAGES

# The number of exports for make bench, and its other flags: see bin/tools/bench --help.
N ?= 1000
BENCHFLAGS ?=

# How long make faults kills the process of a module again and again.
KILL ?= 5m

# The packages and flags of make test. If you set PKG, it does not test the modules under hack/. golangci-lint runs vet.
PKG ?= ./...
TESTFLAGS ?= -vet=off -parallel 6 -timeout 60m
# The packages without Kubernetes, which make test runs with the race detector. It would double the time of the others, and
# compile the libraries of Kubernetes again; make race does it.
RACE_PKG := $(addprefix ./internal/,audit/... ciphertext/... hsm/... kms/... redact/... wrapping/...)
# What takes four times as long with the race detector.
UNRACED := ^TestFaults$$
FUZZTIME ?= 10s
# The limit for minimizing an interesting input. The default, a minute, is longer than FUZZTIME.
FUZZMINIMIZETIME ?= 10x

# Flags of make e2e, such as -test.run=TestMetrics.
E2EFLAGS ?=

BIN := $(CURDIR)/bin
TOOLS := $(BIN)/tools
NODE := $(BIN)/node
NODE_LOGS := $(BIN)/node-logs
CONTROLLER_GEN := $(TOOLS)/controller-gen
KUSTOMIZE := $(TOOLS)/kustomize
GOLANGCI_LINT := $(TOOLS)/golangci-lint
LAUNCHER := $(TOOLS)/controlplane
export HELM := $(TOOLS)/helm
CYCLONEDX_GOMOD := $(TOOLS)/cyclonedx-gomod

# Official clients of the documented API, which the tests of the gateway run.
NPM_CLIENTS := hack/gateway/node/node_modules/.package-lock.json

# All Go modules of the repository, and those that contain code, not only the versions of tools.
MODULES := $(sort $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path "./bin/*" -not -path "*/node_modules/*")))
CODE_MODULES := $(foreach m,$(MODULES),$(if $(wildcard $(m)/*.go $(m)/*/*.go),$(m)))

##@ Everyday

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/keyconvoy
	$(GO) build -o $(BIN)/keyconvoy \
		-ldflags '-X github.com/keyconvoy/keyconvoy/internal/cli.version=$(VERSION)' .

.PHONY: demo
demo: demo-packages build controlplane $(LAUNCHER) ## Import a key from openssl and export a data key to recipients (DEMO_STORE=softhsm for an HSM)
	hack/demo/demo.sh

.PHONY: demo-two-clusters
demo-two-clusters: packages build controlplane $(LAUNCHER) ## Move a key from the module of one cluster to that of another
	hack/demo/two-clusters.sh

.PHONY: gateway-clients
gateway-clients: controlplane $(NPM_CLIENTS) ## Test the built gateway with the official clients of the API, in Go and on npm
	$(GO) -C hack/gateway test $(TESTFLAGS) ./...

.PHONY: test
test: packages controlplane $(HELM) $(NPM_CLIENTS) ## Run all tests, those of the modules and operations with the race detector (PKG=./… TESTFLAGS=…)
ifeq ($(origin PKG),file)
	$(GO) test -race $(TESTFLAGS) -skip $(UNRACED) $(RACE_PKG)
	$(GO) test $(TESTFLAGS) -run $(UNRACED) ./internal/hsm/process
	$(GO) test $(TESTFLAGS) $$(comm -23 <($(GO) list $(PKG) | sort) <($(GO) list $(RACE_PKG) | sort))
	for module in $(filter-out . ./hack/e2e,$(CODE_MODULES)); do \
		$(GO) -C $$module test $(TESTFLAGS) ./...; \
	done
else
	$(GO) test $(TESTFLAGS) $(PKG)
endif

.PHONY: race
race: packages controlplane ## Run all tests of the product with the race detector
	$(GO) test -race $(TESTFLAGS) ./controllers/... ./internal/...

.PHONY: faults
faults: packages ## Let each PKCS#11 function fail in each way, and kill modules for KILL=5m; it takes an hour
	$(GO) test -v -timeout 6h -run '^TestFaults' ./internal/hsm/process -faults.all -faults.kill $(KILL)

.PHONY: bench
bench: packages build controlplane $(LAUNCHER) ## Compare the operator with a bare client (N=10000 BENCHFLAGS=…)
	$(GO) -C hack/bench build -o $(TOOLS)/bench .
	$(TOOLS)/bench -n $(N) $(BENCHFLAGS)

.PHONY: bench-gateway
bench-gateway: controlplane ## Compare the gateway with the bare operations and with a plain server that checks the same signatures
	$(GO) -C hack/gateway test -run '^$$' -bench . -timeout 60m .

.PHONY: bench-modules
bench-modules: packages ## Compare the operations with bare calls into the modules
	$(GO) test -run '^$$' -bench . -benchmem ./internal/...

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME
	for package in $$(grep -rl '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u); do \
		for target in $$($(GO) test -list '^Fuzz' ./$$package | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime $(FUZZMINIMIZETIME) ./$$package; \
		done; \
	done

.PHONY: clean
clean: ## Stop the local control plane and delete bin/
	if [ -x $(LAUNCHER) ]; then $(LAUNCHER) down; fi
	rm -rf $(BIN)

##@ Code

.PHONY: generate
generate: $(CONTROLLER_GEN) $(KUSTOMIZE) ## Generate deepcopy, apply configurations, CRDs, RBAC, the chart's files, docs/reasons.md and docs/reference
	cd api && $(CONTROLLER_GEN) object applyconfiguration crd paths=./... output:crd:artifacts:config=../config/crd/bases
	$(CONTROLLER_GEN) rbac:roleName=manager-role paths=./controllers/... output:rbac:artifacts:config=config/rbac
	$(GO) run ./hack/reasons docs/reasons.md
	$(GO) run ./hack/reference docs/reference
	rm -rf config/chart/files && mkdir -p $(addprefix config/chart/files/,default csi gateway monitoring namespaced)
	$(KUSTOMIZE) build config/chart -o config/chart/files/default
	for part in csi gateway monitoring; do $(KUSTOMIZE) build config/$$part -o config/chart/files/$$part; done
	cp config/namespaced/cluster_role.yaml config/chart/files/namespaced

.PHONY: fmt
fmt: ## Format the code
	gofmt -w .

.PHONY: tidy
tidy: ## Tidy the go.mod of each module
	for module in $(MODULES); do $(GO) -C $$module mod tidy; done

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Lint the code
	for module in $(CODE_MODULES); do \
		(cd $$module && $(GOLANGCI_LINT) run --config $(CURDIR)/.golangci.yml ./...); \
	done

.PHONY: verify
verify: verify-format verify-generated verify-modules verify-manifests verify-portable lint ## Check formatting, generated files, go.mod files, manifests and lint

.PHONY: verify-format
verify-format:
	@files=$$(gofmt -l .); \
	if [ -n "$$files" ]; then echo "$$files"; echo "Not formatted; run: make fmt" >&2; exit 1; fi

# Generates in a copy, so that the check does not change any file.
.PHONY: verify-generated
verify-generated: $(CONTROLLER_GEN) $(KUSTOMIZE)
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar -c --exclude=./bin --exclude=./dist --exclude=./.git --exclude=./my . | tar -x -C "$$copy"; \
	$(MAKE) --no-print-directory -C "$$copy" generate TOOLS=$(TOOLS); \
	for dir in api config docs; do \
		diff -ru "$$dir" "$$copy/$$dir" || { echo "Generated files are not current; run: make generate" >&2; exit 1; }; \
	done

.PHONY: verify-modules
verify-modules:
	@for module in $(MODULES); do \
		$(GO) -C $$module mod tidy -diff || { echo "$$module/go.mod is not tidy; run: make tidy" >&2; exit 1; }; \
	done

.PHONY: verify-manifests
verify-manifests: $(KUSTOMIZE) $(HELM)
	$(KUSTOMIZE) build config/default >/dev/null
	$(KUSTOMIZE) build config/namespaced >/dev/null
	$(KUSTOMIZE) build config/csi >/dev/null
	$(KUSTOMIZE) build config/gateway >/dev/null
	$(HELM) lint --strict --quiet config/chart

# The product must build without cgo, with the software store only, and the commands on the platforms of a release.
.PHONY: verify-portable
verify-portable:
	CGO_ENABLED=0 $(GO) build -o /dev/null .
	CGO_ENABLED=0 GOOS=darwin $(GO) build -o /dev/null .
	CGO_ENABLED=0 GOOS=windows $(GO) build -o /dev/null .

##@ Images and releases

.PHONY: image
image: ## Build the images IMG, IMG-hsm and IMG-client with docker, podman or buildah (IMG=… CONTAINER_TOOL=…)
	@VERSION=$(VERSION) hack/image/images.sh $(IMG)

.PHONY: image-check
image-check: ## Build the images again and compare them, and check their content; as root, with buildah
	@hack/packages.sh buildah
	@$(MAKE) --no-print-directory image CONTAINER_TOOL=buildah
	@VERSION=$(VERSION) hack/image/check.sh $(IMG)

.PHONY: release
release: $(KUSTOMIZE) $(HELM) $(CYCLONEDX_GOMOD) ## Write a release to dist/: images, manifests, chart, command line, checksums and SBOM (VERSION=… IMG=…)
	@VERSION=$(VERSION) IMG=$(IMG) TOOLS=$(TOOLS) hack/release/release.sh

##@ A control plane on this machine

.PHONY: up
up: controlplane $(LAUNCHER) ## Start it and print its KUBECONFIG; eval "$(make -s up)" lets kubectl use it
	@$(LAUNCHER) up

.PHONY: down
down: $(LAUNCHER) ## Stop it and delete its data
	@$(LAUNCHER) down

##@ A node on this machine

# The tests are compiled outside of the node, which has no network. They find the documents and samples from hack/e2e.
.PHONY: e2e
e2e: node node-images $(HELM) ## Test what is installed on a real node, in namespaces of its own; needs root (E2EFLAGS=-test.run=…)
	$(GO) -C hack/e2e test -c -o $(NODE)/e2e.test .
	cd hack/e2e && PATH="$(BIN):$$PATH" $(NODE)/node --binaries $(NODE) --logs $(NODE_LOGS) \
		$(NODE)/e2e.test -test.v -test.timeout 60m $(E2EFLAGS)

.PHONY: e2e-node
e2e-node: node ## Open a shell on such a node; it ends with the shell
	PATH="$(BIN):$$PATH" $(NODE)/node --binaries $(NODE) --logs $(NODE_LOGS) bash

##@ The current cluster of kubectl

.PHONY: install
install: $(KUSTOMIZE) ## Apply the CRDs only
	$(KUSTOMIZE) build config/crd | kubectl apply -f -

# Sets the image in an overlay, so that it does not change a file of the repository.
.PHONY: deploy
deploy: $(KUSTOMIZE) ## Apply CRDs, RBAC and the manager (IMG=…)
	rm -rf $(BIN)/deploy && mkdir -p $(BIN)/deploy
	cd $(BIN)/deploy && $(KUSTOMIZE) create --resources ../../config/default && $(KUSTOMIZE) edit set image keyconvoy=$(IMG)
	$(KUSTOMIZE) build $(BIN)/deploy | kubectl apply -f -

# Deletes the CRDs first: only while the manager runs can it clean up their objects.
.PHONY: undeploy
undeploy: $(KUSTOMIZE) ## Delete what deploy applied, permanently: all key objects, software keys and PINs
	$(KUSTOMIZE) build config/crd | kubectl delete --ignore-not-found -f -
	$(KUSTOMIZE) build config/default | kubectl delete --ignore-not-found -f -

# The targets above depend on the following ones.

.PHONY: packages
packages:
	@hack/packages.sh curl gcc libc6-dev openssl softhsm2 libnss3 libnss3-tools opencryptoki p11-kit p11-kit-modules \
		libtpm2-pkcs11-1 libtss2-tcti-swtpm0 swtpm

.PHONY: demo-packages
demo-packages:
	@hack/packages.sh gcc libc6-dev openssl $(if $(filter softhsm,$(DEMO_STORE)),softhsm2)

# Builds packages of Kubernetes and etcd: WHAT, DIRECTORY, PACKAGES. The product, the control plane and its launcher use
# the same versions of the client libraries, so that Go compiles what they share once.
#
# The linker sets the version, which these sources contain only in their own repository. The package of etcd is named
# server.
VERSION_PACKAGE := k8s.io/component-base/version
define build-kubernetes
	@version=$$($(GO) -C hack/controlplane/binaries list -m -f '{{.Version}}' k8s.io/kubernetes); \
	minor=$${version#v1.}; minor=$${minor%%.*}; mkdir -p $(2); \
	cd hack/controlplane/binaries && GO=$(GO) ../../build.sh $(1) \
		-o $(2)/ -ldflags "-s -w \
		-X $(VERSION_PACKAGE).gitVersion=$$version -X $(VERSION_PACKAGE).gitMajor=1 -X $(VERSION_PACKAGE).gitMinor=$$minor" $(3)
endef

# kube-apiserver, etcd and kubectl. If KUBEBUILDER_ASSETS is set, its binaries are used.
.PHONY: controlplane
ifdef KUBEBUILDER_ASSETS
export KUBEBUILDER_ASSETS := $(abspath $(KUBEBUILDER_ASSETS))
controlplane: ;
else
export KUBEBUILDER_ASSETS := $(BIN)/controlplane
CONTROLPLANE := $(addprefix $(KUBEBUILDER_ASSETS)/,kube-apiserver kubectl etcd)
controlplane: $(CONTROLPLANE)

$(CONTROLPLANE) &: hack/controlplane/binaries/go.mod hack/controlplane/binaries/go.sum
	$(call build-kubernetes,"the control plane",$(KUBEBUILDER_ASSETS),go.etcd.io/etcd/server/v3 \
		k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl)
	@mv $(KUBEBUILDER_ASSETS)/server $(KUBEBUILDER_ASSETS)/etcd
	@touch $(CONTROLPLANE)
endif

$(LAUNCHER): $(wildcard hack/controlplane/*.go hack/controlplane/environment/*.go) hack/controlplane/go.mod hack/controlplane/go.sum
	@cd hack/controlplane && GO=$(GO) ../build.sh "the launcher of the control plane" -o $@ .
	@touch $@

$(NPM_CLIENTS): hack/gateway/node/package.json hack/gateway/node/package-lock.json
	@hack/packages.sh nodejs npm
	@cd hack/gateway/node && npm ci --no-audit --no-fund --ignore-scripts
	@touch $@

# The other parts of a node, which only make e2e needs.
.PHONY: node
node: node-packages build controlplane $(NODE)/kubelet $(NODE)/containerd
	@$(GO) -C hack/e2e build -o $(NODE)/node ./node
	@CGO_ENABLED=0 $(GO) -C hack/e2e build -ldflags '-s -w' -o $(NODE)/pause ./pause

# The images of make image, on stand-ins for their base images, because the tests need no registry.
.PHONY: node-images
node-images:
	@hack/image/standin.sh
	@export CONTAINER_TOOL=buildah BASE_IMAGES=standin VERSION=$(VERSION); \
	hack/image/build.sh manager registry.example.com/keyconvoy:v1 "" $(NODE)/manager.tar; \
	hack/image/build.sh client registry.example.com/keyconvoy:v1-client "" $(NODE)/client.tar

.PHONY: node-packages
node-packages:
	@hack/packages.sh gcc libc6-dev openssl softhsm2 iproute2 runc containernetworking-plugins

$(NODE)/kubelet: hack/controlplane/binaries/go.mod hack/controlplane/binaries/go.sum
	$(call build-kubernetes,"the other parts of a node",$(NODE),k8s.io/kubernetes/cmd/kubelet \
		k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler)
	@touch $@

$(NODE)/containerd: hack/e2e/binaries/go.mod hack/e2e/binaries/go.sum
	@cd hack/e2e/binaries && GO=$(GO) ../../build.sh "containerd" -o $(NODE)/ -ldflags '-s -w' tool
	@touch $@

$(CONTROLLER_GEN) $(KUSTOMIZE) &: hack/tools/go.mod hack/tools/go.sum
	@cd hack/tools && GO=$(GO) ../build.sh "controller-gen and kustomize" -o $(TOOLS)/ tool
	@touch $(CONTROLLER_GEN) $(KUSTOMIZE)

$(GOLANGCI_LINT): hack/tools/golangci-lint/go.mod hack/tools/golangci-lint/go.sum
	@cd hack/tools/golangci-lint && GO=$(GO) ../../build.sh golangci-lint -o $(TOOLS)/ tool
	@touch $@

$(HELM): hack/tools/helm/go.mod hack/tools/helm/go.sum
	@cd hack/tools/helm && GO=$(GO) ../../build.sh helm -o $(TOOLS)/ tool
	@touch $@

$(CYCLONEDX_GOMOD): hack/tools/cyclonedx-gomod/go.mod hack/tools/cyclonedx-gomod/go.sum
	@cd hack/tools/cyclonedx-gomod && GO=$(GO) ../../build.sh cyclonedx-gomod -o $(TOOLS)/ tool
	@touch $@
