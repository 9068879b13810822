# The project's commands. Everything is installed into .venv; a second call reuses it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ROOT ?= runs/demo
# No bytecode at installing: most of 7 GB of packages is never imported, and what is compiles itself once.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# pip says either nothing or hundreds of lines; this says every ten seconds how much is there.
define INSTALL
( while sleep 10 >/dev/null 2>&1; do echo "installing: $$(du -sm .venv | cut -f1) MB of about 7000"; done & \
trap "kill $$!" EXIT; $(PIP) $(1) )
endef

# Modules keep their bytecode once they are imported, also where the environment forbids it (as many images do): without
# it each of Ray's workers compiles torch, pandas and Ray from source, which takes it 5 to 10 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo dashboard test test-fast test-long test-faults gpu-check checks style bench clean

setup: .venv/.core

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(call INSTALL,'.')
	touch $@

.venv/.test: .venv/.core
	@$(call INSTALL,'.[test]')
	touch $@

.venv/.dev: .venv/.core
	@$(call INSTALL,'.[dev]')
	touch $@ .venv/.test

# From nothing to a pre-trained, evaluated model on the embedded corpus, ending in a table.
demo: .venv/.core
	$(BIN)/python pipelines/all.py --preset tiny --root $(ROOT)

# The runs of a root in MLflow's pages, only on this machine; prints the address of the table of runs.
PORT ?= 5000
dashboard: .venv/.core
	@$(BIN)/python -m evilm.tracking.dashboard --root $(ROOT) --port $(PORT)

# Tests run in JOBS processes, each with a Ray of its own, and each file of tests in one of them. FLAGS go to pytest.
JOBS ?= 2
FLAGS ?= --durations=20
PYTEST := $(BIN)/python -m pytest $(FLAGS)
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: .venv/.test
	$(PYTEST) $(PARALLEL)

test-fast: .venv/.test
	$(PYTEST) $(PARALLEL) -m 'not slow and not long'

# What takes half a minute to minutes each: autoscaling, lost nodes, killed sweeps, four workers, torch.compile, a
# browser. One after the other, since most of them start several Rays or need both cores.
test-long: .venv/.test
	$(PYTEST) -m long

# Kills, signals and outages, RUNS times in a row on the same inputs; without those that are long, but for a training's
# restarts. FAULTS=long runs the long ones.
RUNS ?= 1
FAULTS ?= not long or restart
test-faults: .venv/.test
	$(PYTEST) $(PARALLEL) --count $(RUNS) --repeat-scope session -m 'faults and ($(FAULTS))'

# On a machine with a CUDA device: what only a card can show, then its speed. Needs neither Ray, MLflow nor a video
# decoder, so BIN may name another environment with torch, timm, transformers, pyarrow, simplejpeg and pytest.
gpu-check: $(if $(filter .venv/bin,$(BIN)),.venv/.test)
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "error: torch sees no CUDA device; make test runs the same tests on the CPU")'
	$(BIN)/python -m pytest -m gpu -rP tests/gpu
	mkdir -p runs/benchmarks
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py --json runs/benchmarks/gpu.json

checks: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

style: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything that has a figure: model sizes, then each benchmark against its bare loop, with JSON beside the table.
BENCHMARKS ?= ingest codes feed memory train_step scaling
BENCH_FLAGS ?=
bench: .venv/.core
	$(BIN)/python -m evilm.model.cost
	mkdir -p runs/benchmarks
	set -e; for name in $(BENCHMARKS); do \
	  $(BIN)/python benchmarks/$$name.py --json runs/benchmarks/$$name.json $(BENCH_FLAGS); done

clean:
	rm -rf runs .pytest_cache .ruff_cache
