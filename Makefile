# `make demo` and `make test` are all a newcomer needs; both create the environment on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
unexport PYTHONDONTWRITEBYTECODE # with it, every Ray worker compiles what it imports again

# Two at a time, in the order of the tree: xdist would keep files of few tests, some of which are the longest, for the end,
# when one process is alone with them. A process that dies ends the run: xdist, which would start another, then waits for
# ever (its loadfile scheduler counts finished files as work that is left).
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# The log that `make real` takes a part of: interactions.parquet and items.parquet.
REAL_LOG ?= data/amazon-video-games

.PHONY: install demo real test test-faults test-hosts test-s3 lint format clean

install: $(READY)

# torch comes first and alone, so that no other package draws in a build with CUDA where there is no GPU.
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/allmrec demo

# Hours on two cores: a real LLM of 135 million parameters reads every prompt. Resumes where it was stopped.
real: $(READY)
	$(BIN)/python -m benchmarks.real_models --to models
	$(BIN)/python -m benchmarks.cut_log --log $(REAL_LOG) --to data/video-games-part
	$(BIN)/allmrec run --config jobs/configs/real-small.yaml

test: $(READY)
	$(BIN)/pytest $(PARALLEL) tests

# Jobs killed at random moments (ALLMREC_KILLS times), consecutive nightly runs (ALLMREC_RUNS), and a series of runs with
# faults (ALLMREC_SEASON).
test-faults: $(READY)
	$(BIN)/pytest $(PARALLEL) -m faults

# Jobs on two isolated hosts, one of which is powered off (needs root and iproute2; skipped without).
test-hosts: $(READY)
	$(BIN)/pytest -m hosts

# The storage and publishing tests against Ceph RADOS Gateway, a real S3 store (needs root for apt-get).
test-s3: $(READY)
	tests/ceph/run.sh $(BIN)/pytest -m s3

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
