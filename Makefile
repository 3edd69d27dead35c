# Every target does its own set-up: a machine needs Python 3.12, a C++ compiler, git and make.
# `make demo` is the main job end to end; `make demo-images` the same from two cameras, `make demo-real
# DATA=folder` on a LeRobot folder.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Some images of containers set it: each of the hundreds of processes that tests start would then compile torch,
# scipy and the rest anew, which doubles the time of the suite.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup demo demo-images demo-real demo-twin test test-fast test-kernel docs check format bench lock clean

BIN := .venv/bin
STAMP := .venv/.ulna-installed
DEMO ?= runs/demo
DEMO_IMAGES ?= runs/demo-images
DEMO_REAL ?= runs/demo-real
DEMO_TWIN ?= runs/demo-twin

help:
	@grep -E '^## ' Makefile | sed 's/^## //'

## setup        .venv with the locked dependencies and ulna itself (about 3 minutes: PyBullet compiles)
setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml scripts/find-python
	@command -v g++ >/dev/null || { echo "setup needs a C++ compiler to build PyBullet: install g++ (Debian/Ubuntu: apt-get install g++)" >&2; exit 1; }
	if ! { [ -x $(BIN)/uv ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; }; then \
	    python=$$(scripts/find-python) && "$$python" -m venv --clear .venv && \
	    $(BIN)/python -m pip install --quiet $$(grep -oE '^uv==[0-9.]+' requirements.lock); fi
	CPPFLAGS=-g0 $(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock   # PyBullet compiles a quarter faster
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	mkdir -p .venv/link && ln -sfn "$(CURDIR)" .venv/link/ulna   # where pyright finds `ulna`
	touch $@

## demo         record 100 lift episodes, train, serve, evaluate 50 scenes through the server, report (3 minutes)
demo: $(STAMP)
	$(BIN)/python -m ulna.robot.demos.run sim --out "$(DEMO)"

## demo-images  the same from two cameras: 300 episodes, 50 scenes (half an hour)
demo-images: $(STAMP)
	$(BIN)/python -m ulna.robot.demos.run images --out "$(DEMO_IMAGES)"

## demo-real    DATA=folder: import a LeRobot folder, train from images and state, evaluate open loop, report (15 minutes)
demo-real: $(STAMP)
	@[ -n "$(DATA)" ] || { echo "say which LeRobot folder: make demo-real DATA=path/to/folder" >&2; exit 2; }
	$(BIN)/python -m ulna.robot.demos.run real --data "$(DATA)" --out "$(DEMO_REAL)"

## demo-twin    the same on device twins: leader, follower and cameras through their real drivers (20 minutes)
demo-twin: $(STAMP)
	$(BIN)/python -m ulna.robot.demos.run twin --out "$(DEMO_TWIN)"

# Three processes on two cores: the tests of twins, servers and signals wait for most of their time.
## test         the whole suite, and how much of each folder it ran
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=json:build/coverage/report.json
	scripts/coverage-by-room build/coverage/report.json

## test-fast    the tests of logic (a minute or so); not those that a clock judges, nor the slow ones
test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not realtime and not slow" --timeout 60

## docs         the pages as a site: open build/site/index.html; nothing is fetched
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

## test-kernel  the tests that need kernel drivers (V4L2, CAN, uinput, uhid, USB serial), in a virtual machine
test-kernel: $(STAMP)
	scripts/test-kernel

## check        ruff (format and lint) and pyright
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --threads 2

## format       ruff format and its safe fixes
format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench        every benchmark that needs no dataset, with its baseline, into benchmarks/results/
bench: $(STAMP)
	for b in experts recording kills reading servo_rates cameras faults soak sim_steps serving_latency train_throughput tables; do echo "== $$b" >&2; $(BIN)/python benchmarks/$$b.py; done

## lock         resolve the dependencies anew (hashes, no download addresses)
lock: $(STAMP)
	$(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python --python-version 3.12 --generate-hashes \
	    --no-emit-index-url --no-annotate --group dev --extra vla pyproject.toml -o requirements.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock   # the next line reads what is installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python scripts/robot-requirements

## clean        remove the environment, caches and runs/demo*
clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis runs/demo runs/demo-images runs/demo-real runs/demo-twin
