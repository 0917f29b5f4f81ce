# make run    set up .venv, then the main job on the embedded digits: a compact robust network and a report
# make test   set up .venv, then every test
# make quick  the tests that take seconds
# make check  what CI checks besides: ruff, mypy --strict, the floors
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/digits
SETUP := $(VENV)/.ready

.PHONY: run test quick check setup clean

setup: $(SETUP)

$(SETUP): pyproject.toml setup.py constraints.txt tools/setup.sh $(wildcard native/*)
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"

run: $(SETUP)
	@$(BIN)/hydraprune compare recipes/digits.yaml --jobs auto --out $(OUT)

# One process a core, each with one thread: most tests are too small for more. Every file stays in one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile

test: $(SETUP)
	@$(PYTEST)

quick: $(SETUP)
	@$(PYTEST) -m "not slow"

check: $(SETUP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs build
