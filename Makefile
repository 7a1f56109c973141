# make quickstart   set up, then the whole path on real text of this machine: a few minutes on 2 cores
# make test         the same set-up, then the test suite without the long runs on a cluster
# make cluster      runs on a SLURM of two hosts, made on this machine: root, six minutes or more
# make soak         a run killed 30 times on changing layouts, beside one that never stopped
# make check        format, lint, types, import rules

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test cluster soak check format clean

quickstart:
	@start=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/installed && \
	$(BIN)/python launch/quickstart.py --setup_seconds $$(($$(date +%s) - start))

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not (cluster and slow)"

cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m cluster

soak: $(VENV)/installed
	$(BIN)/python -m tests.soak

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dist_bert data_prep launch tests
	$(BIN)/python -m pytest -q tests/test_import_rules.py

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: setup.py constraints.txt
	@echo "setting up $(VENV): torch, deepspeed and the others, once, a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache
