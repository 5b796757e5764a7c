# Every target makes the environment first when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes of one thread each use two cores better than one process of two threads does here.
TEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: demo test test-slow test-web lint docs bench clean
.DELETE_ON_ERROR:

demo: $(BIN)/unifl
	$(OFFLINE) $(BIN)/unifl demo

test: $(BIN)/unifl
	$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --durations 15

test-slow: $(BIN)/unifl
	$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist worksteal --durations 15 \
		-m "slow and not network and not gpu and not browser"

# Sets up Chromium where there is none.
test-web: $(BIN)/unifl
	@chromium=$$(tests/web/chromium.sh $(BIN)/python) || exit $$?; \
		CHROMIUM="$$chromium" $(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -q -m browser tests/web

lint: $(BIN)/unifl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(BIN)/unifl
	$(BIN)/zensical build --strict --clean

bench: $(BIN)/unifl
	$(OFFLINE) $(BIN)/unifl bench unifl

clean:
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The script is written last by pip, so an interrupted set-up is taken up again.
$(BIN)/unifl:
	@$(PYTHON) -c 'import sys; sys.exit("unifl needs Python 3.11 or newer: make PYTHON=python3.11 ...") \
		if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[coco,dev,docs,optim,parquet,prompts,track,web]"
