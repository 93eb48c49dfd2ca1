# The commands of this repository. `make demo` is the first one to run, `make
# test` runs every test once, `make ci` is what the CI runs.

GO       ?= go
FUZZTIME ?= 10s
BENCHCOUNT ?= 1
# Jobs one by one, and in batches onto nodes that hold them all.
BENCHLOADS := '--insecure --rate 200' '--insecure --rate 1000' '--rate 1000' \
	'--insecure --rate 20000 --batch 500 --duration 3s --gpus-per-node 64 --task-time 0'

MODULE  := github.com/gpuai/gpuai
# The deterministic core: also tested with GOARCH=386, where an int is small.
CORE    := . ./internal/mem/... ./scheduler/... ./fsm/...
# What runs goroutines and files against each other, tested one package at a
# time: its tests have deadlines.
CLUSTER := ./raft/... ./store/... ./server/... ./agent/...
RACED   := ^$(MODULE)($$|/(internal/mem|scheduler|fsm|raft|store|server|agent)($$|/))

# A trace that tests replay where it is at hand, see docs; else they say that
# they skip.
ifeq ($(GPUAI_OPENB),)
GPUAI_OPENB := $(abspath $(wildcard ../shared/data/openb))
endif
export GPUAI_OPENB

# One set of flags for all, so that what is built once is not built again: vet,
# build and most tests share it.
export GOFLAGS := -trimpath $(GOFLAGS)

# Of make sim, and of make virtual.
SEEDS ?= 10000
FIRST ?= 1
TIMES ?= 5

.PHONY: build test test-core test-cluster test-rest test-nvidia race arch test-386 fuzz bench fmt fmt-check vet demo \
	bench-region bench-agent bench-hostile bench-tls example-torch nightly sim virtual chaos chaos-short chaos-long scale ci \
	promise-utilisation promise-splitting promise-mixed promise-growth

# Only gpuai-driver-nvidia needs cgo: it loads NVIDIA's library. The warnings are of
# that library's header.
CGO := CGO_ENABLED=1 CGO_CFLAGS='-O2 -g -Wno-deprecated-declarations' $(GO)

build:
	mkdir -p bin
	CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/...
	@if command -v "$$($(GO) env CC)" >/dev/null; then $(CGO) build -o bin/ ./cmd/gpuai-driver-nvidia; \
	else echo 'there is no C compiler: bin/gpuai-driver-nvidia can only say so'; fi

test: arch test-core test-cluster test-rest test-nvidia

test-core:
	$(GO) test -race -timeout 15m $(CORE)

# The dependencies are built beforehand, in parallel.
test-cluster:
	$(GO) build -race $(CLUSTER)
	$(GO) test -race -p 1 -timeout 15m $(CLUSTER)

test-rest:
	CGO_ENABLED=0 $(GO) test -p 1 -timeout 15m $$($(GO) list ./... | grep -vE '$(RACED)' | grep -v '/internal/arch$$')

# The one package with cgo: through dlopen of a library that it builds with gcc.
test-nvidia:
	$(CGO) vet ./plugins/nvidia ./cmd/gpuai-driver-nvidia
	$(CGO) test -timeout 10m ./plugins/nvidia

race:
	$(GO) test -race -p 1 -timeout 30m ./...

# Not from the cache: it looks at files that the go command does not know of.
arch:
	$(GO) test -count=1 ./internal/arch

test-386:
	GOARCH=386 CGO_ENABLED=0 $(GO) vet $(CORE)
	GOARCH=386 CGO_ENABLED=0 $(GO) test -timeout 15m $(CORE)

# The goals of a region's speed in one table, some minutes; ONLY=lone,batch for some.
bench-region: build
	$(GO) run ./integration/goals $(if $(ONLY),--only $(ONLY))

# What an agent adds to a task in a sandbox; needs root and runc, half a minute.
bench-agent: build
	$(GO) run ./integration/agentbench

# A tenant's latency beside another's flood, and beside thousands of connections
# that are held; three minutes.
bench-hostile: build
	$(GO) run ./integration/hostile --gpuai bin/gpuai --rounds 5

# Handshakes of agents, and what a connected one costs.
bench-tls: build
	$(GO) run ./integration/securebench

# Real PyTorch on a region of its own: as root; not part of `make test`.
example-torch:
	test -x /usr/bin/torchrun -a -x /usr/sbin/runc || (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-torch runc)
	CGO_ENABLED=0 $(GO) run ./integration/torch

# What is too long for each change.
nightly: fuzz sim example-torch

# Every fuzz target there is, FUZZTIME each. Go's fuzzer fails now and then with
# "context deadline exceeded" at its end: a second run decides, which what was found
# fails at once, since it is in testdata by then.
fuzz:
	@grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file decl; do \
		name=$${decl#func }; dir=$$(dirname "$$file"); \
		printf '%s %s: ' "$$dir" "$$name"; \
		fuzz() { $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "$$dir" 2>&1 </dev/null; }; \
		out=$$(fuzz) || out=$$(fuzz) || { printf 'failed\n%s\n' "$$out"; exit 1; }; \
		printf '%s\n' "$$out" | grep -oE 'execs: [0-9]+' | tail -1; \
	done

# The figures of docs/benchmarks.md. BENCHCOUNT=5 for medians.
bench: build
	$(GO) test -run '^$$' -bench '^(BenchmarkFind|BenchmarkFindTake|BenchmarkChurn|BenchmarkTakeGive|BenchmarkFork|BenchmarkMemory)$$' \
		-benchtime 0.3s -benchmem -count $(BENCHCOUNT) ./scheduler
	$(GO) test -run '^$$' -bench '^(BenchmarkSubmitAndPlace|BenchmarkFork|BenchmarkCountDevices)$$' -benchtime 0.5s -benchmem -count $(BENCHCOUNT) ./fsm
	$(GO) test -run '^$$' -bench '^BenchmarkMemory$$' -benchtime 1x -count $(BENCHCOUNT) ./fsm
	$(GO) test -run '^$$' -bench '^BenchmarkGoals(Place)?$$' -benchtime 2000x -timeout 30m -count $(BENCHCOUNT) ./fsm
	$(GO) test -run '^$$' -bench '^BenchmarkTenantsInCohorts$$' -benchtime 4000x -count $(BENCHCOUNT) ./fsm
	$(GO) test -run '^$$' -bench '^BenchmarkRestore$$' -benchtime 3x -count $(BENCHCOUNT) ./fsm
	$(GO) test -run '^$$' -bench '^BenchmarkCommit3$$/^(ticks|submits|placements|placements-offered|bare-library|lone)$$' -benchtime 200000x -count $(BENCHCOUNT) ./raft
	$(GO) test -run '^$$' -bench '^BenchmarkReplay$$' -benchtime 200000x -count $(BENCHCOUNT) ./raft
	@set -e; for i in $$(seq $(BENCHCOUNT)); do \
		for load in $(BENCHLOADS); do \
			echo "bin/gpuai bench --local 3 --sim-nodes 1000 $$load"; \
			bin/gpuai bench --local 3 --sim-nodes 1000 $$load; \
		done; \
	done
	$(GO) run ./integration/agentbench

fmt:
	gofmt -w .

fmt-check:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; }

vet:
	CGO_ENABLED=0 $(GO) vet ./...

demo: build
	$(GO) run ./integration/demo

# The seeded simulation, see integration/sim/DESIGN.md; the last line is the summary.
sim:
	$(GO) run ./integration/sim --first $(FIRST) --seeds $(SEEDS)

# More seeds of whole regions on virtual time than the tests take.
virtual:
	$(GO) test -count=1 -timeout 60m ./integration/virtual -args -times $(TIMES) -first $(FIRST)

# Faults against the real programs, see docs/chaos.md.
chaos: build
	$(GO) run ./integration/chaos --profile full --report bin/chaos.html

chaos-short: build
	$(GO) run ./integration/chaos --profile short --report bin/chaos-short.html

# The counts of a release.
chaos-long: build
	$(GO) run ./integration/chaos --profile long --report bin/chaos-long.html

# 100,000 nodes' beats through three servers: 9,000 real sessions, the rest injected where
# servers fold them. Two cores cannot hold an election beside so many at multiplier 1.
scale: build
	$(GO) run ./integration/scale --nodes 100000 --real 9000 --raft-multiplier 5

# The experiments of docs/promises.md, minutes each; reports with plots go to bin/.
# The first two replay the openb trace: GPUAI_OPENB names its folder.
promise-utilisation promise-splitting promise-mixed promise-growth: promise-%:
	$(GO) run ./integration/promises $*

# One step after the other, whatever -j says; .ci/run reads the headings.
CI_STEPS := fmt-check vet build arch test-core test-cluster test-rest test-nvidia test-386 demo chaos-short

ci:
	@for step in $(CI_STEPS); do \
		start=$$(date +%s); echo "==> $$step"; \
		$(MAKE) --no-print-directory "$$step" || exit 1; \
		echo "    $$step: $$(($$(date +%s) - start)) s"; \
	done
