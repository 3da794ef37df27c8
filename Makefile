# Everything that developers, the demo and CI run. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO ?= go
CONTAINER_TOOL ?= docker
IMG ?= keyconvoy:$(VERSION)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# How many exports make bench measures, and what it is told besides: see bin/tools/bench --help.
N ?= 1000
BENCHFLAGS ?=

# What make test runs, and how. A PKG of yours leaves the modules under hack/ alone.
PKG ?= ./...
TESTFLAGS ?= -timeout 30m
FUZZTIME ?= 10s

BIN := $(CURDIR)/bin
TOOLS := $(BIN)/tools
CONTROLLER_GEN := $(TOOLS)/controller-gen
KUSTOMIZE := $(TOOLS)/kustomize
GOLANGCI_LINT := $(TOOLS)/golangci-lint
LAUNCHER := $(TOOLS)/controlplane

# Each Go module of the repository, and those that hold code and not only versions of tools.
MODULES := $(sort $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path "./bin/*")))
CODE_MODULES := $(foreach m,$(MODULES),$(if $(wildcard $(m)/*.go $(m)/*/*.go),$(m)))

# Progress goes to standard error: the output of make -s up is for eval.
say = @echo "$(1)" >&2

##@ Everyday

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/keyconvoy
	CGO_ENABLED=1 $(GO) build -trimpath -o $(BIN)/keyconvoy \
		-ldflags '-X github.com/keyconvoy/keyconvoy/internal/cli.version=$(VERSION)' .

.PHONY: demo
demo: demo-packages build controlplane $(LAUNCHER) ## Walk a key from openssl to its recipients (DEMO_STORE=softhsm for an HSM)
	hack/demo/demo.sh

.PHONY: demo-two-clusters
demo-two-clusters: packages build controlplane $(LAUNCHER) ## Carry a key from the module of one cluster to that of another
	hack/demo/two-clusters.sh

.PHONY: test
test: packages controlplane ## Run all tests on real parts, with the race detector (PKG=./… TESTFLAGS=…)
	CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) $(PKG)
ifeq ($(PKG),./...)
	for module in $(filter-out .,$(CODE_MODULES)); do \
		CGO_ENABLED=1 $(GO) -C $$module test -race $(TESTFLAGS) ./...; \
	done
endif

.PHONY: bench
bench: packages build controlplane $(LAUNCHER) ## Measure the operator beside a bare client (N=10000 BENCHFLAGS=…)
	$(GO) -C hack/bench build -o $(TOOLS)/bench .
	$(TOOLS)/bench -n $(N) $(BENCHFLAGS)

.PHONY: bench-modules
bench-modules: packages ## Measure the operations beside bare calls into the modules
	CGO_ENABLED=1 $(GO) test -run '^$$' -bench . -benchmem ./internal/...

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME
	for package in $$(grep -rl '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u); do \
		for target in $$($(GO) test -list '^Fuzz' ./$$package | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./$$package; \
		done; \
	done

.PHONY: clean
clean: ## Stop what runs here and delete bin/
	if [ -x $(LAUNCHER) ]; then $(LAUNCHER) down; fi
	rm -rf $(BIN)

##@ Code

.PHONY: generate
generate: $(CONTROLLER_GEN) ## Generate deepcopy, apply configurations, CRDs, RBAC and docs/reasons.md
	$(CONTROLLER_GEN) object applyconfiguration crd paths=./api/... output:crd:artifacts:config=config/crd/bases
	$(CONTROLLER_GEN) rbac:roleName=manager-role paths=./controllers/... output:rbac:artifacts:config=config/rbac
	$(GO) run ./hack/reasons docs/reasons.md

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
verify: verify-format verify-generated verify-modules verify-manifests verify-portable lint ## Fail on anything that is not as the other targets would make it

.PHONY: verify-format
verify-format:
	@files=$$(gofmt -l .); \
	if [ -n "$$files" ]; then echo "$$files"; echo "Not formatted; run: make fmt" >&2; exit 1; fi

# Generates in a copy, so that a check changes nothing.
.PHONY: verify-generated
verify-generated: $(CONTROLLER_GEN)
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar -c --exclude=./bin --exclude=./.git --exclude=./my . | tar -x -C "$$copy"; \
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
verify-manifests: $(KUSTOMIZE)
	$(KUSTOMIZE) build config/default >/dev/null

# The product is promised to build without cgo, with the software store only.
.PHONY: verify-portable
verify-portable:
	CGO_ENABLED=0 $(GO) build -o /dev/null .

##@ A control plane on this machine

.PHONY: up
up: controlplane $(LAUNCHER) ## Start it and print its KUBECONFIG; with eval "$(make -s up)" kubectl uses it
	@$(LAUNCHER) up

.PHONY: down
down: $(LAUNCHER) ## Stop it and delete its data
	@$(LAUNCHER) down

##@ A cluster (that of your kubectl)

.PHONY: install
install: $(KUSTOMIZE) ## Apply the CRDs only
	$(KUSTOMIZE) build config/crd | kubectl apply -f -

# The image is set in an overlay: a deployment changes no file of the repository.
.PHONY: deploy
deploy: $(KUSTOMIZE) ## Apply CRDs, RBAC and the manager (IMG=…)
	rm -rf $(BIN)/deploy && mkdir -p $(BIN)/deploy
	cd $(BIN)/deploy && $(KUSTOMIZE) create --resources ../../config/default && $(KUSTOMIZE) edit set image keyconvoy=$(IMG)
	$(KUSTOMIZE) build $(BIN)/deploy | kubectl apply -f -

# The kinds first and alone: their objects can go only while the manager is there to clean up.
.PHONY: undeploy
undeploy: $(KUSTOMIZE) ## Delete what deploy applied, and for ever: all key objects, software keys and PINs
	$(KUSTOMIZE) build config/crd | kubectl delete --ignore-not-found -f -
	$(KUSTOMIZE) build config/default | kubectl delete --ignore-not-found -f -

.PHONY: docker-build
docker-build: ## Build the container image (IMG=…)
	$(CONTAINER_TOOL) build --build-arg VERSION=$(VERSION) --tag $(IMG) .

# What follows is set-up that the targets above ask for.

.PHONY: packages
packages:
	@hack/packages.sh gcc libc6-dev openssl softhsm2 libnss3 libnss3-tools

.PHONY: demo-packages
demo-packages:
	@hack/packages.sh gcc libc6-dev openssl $(if $(filter softhsm,$(DEMO_STORE)),softhsm2)

# kube-apiserver, etcd and kubectl. Binaries that the environment already names win.
.PHONY: controlplane
ifdef KUBEBUILDER_ASSETS
export KUBEBUILDER_ASSETS := $(abspath $(KUBEBUILDER_ASSETS))
controlplane: ;
else
export KUBEBUILDER_ASSETS := $(BIN)/controlplane
CONTROLPLANE := $(addprefix $(KUBEBUILDER_ASSETS)/,kube-apiserver kubectl etcd)
controlplane: $(CONTROLPLANE)

# The linker is told the version because these sources, outside of their repository, do not know it.
# The package of etcd is called server.
VERSION_PACKAGE := k8s.io/component-base/version
$(CONTROLPLANE) &: hack/controlplane/binaries/go.mod hack/controlplane/binaries/go.sum
	$(call say,Building kube-apiserver and etcd and kubectl from source; this happens once and takes about six minutes …)
	@version=$$($(GO) -C hack/controlplane/binaries list -m -f '{{.Version}}' k8s.io/kubernetes); \
	minor=$${version#v1.}; minor=$${minor%%.*}; \
	CGO_ENABLED=0 $(GO) -C hack/controlplane/binaries build -trimpath -o $(KUBEBUILDER_ASSETS)/ -ldflags "-s -w \
		-X $(VERSION_PACKAGE).gitVersion=$$version -X $(VERSION_PACKAGE).gitMajor=1 -X $(VERSION_PACKAGE).gitMinor=$$minor" tool
	@mv $(KUBEBUILDER_ASSETS)/server $(KUBEBUILDER_ASSETS)/etcd
	@touch $(CONTROLPLANE)
endif

$(LAUNCHER): $(wildcard hack/controlplane/*.go) hack/controlplane/go.mod hack/controlplane/go.sum
	@$(GO) -C hack/controlplane build -o $@ .
	@touch $@

$(CONTROLLER_GEN) $(KUSTOMIZE) &: hack/tools/go.mod hack/tools/go.sum
	$(call say,Building controller-gen and kustomize; this happens once and takes about a minute …)
	@CGO_ENABLED=0 $(GO) -C hack/tools build -trimpath -o $(TOOLS)/ tool
	@touch $(CONTROLLER_GEN) $(KUSTOMIZE)

$(GOLANGCI_LINT): hack/tools/golangci-lint/go.mod hack/tools/golangci-lint/go.sum
	$(call say,Building golangci-lint; this happens once and takes about two minutes …)
	@CGO_ENABLED=0 $(GO) -C hack/tools/golangci-lint build -trimpath -o $(TOOLS)/ tool
	@touch $@
