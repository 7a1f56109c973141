# make quickstart   set up, then the whole path on real text of this machine: a few minutes on 2 cores
# make speedrun     the record's recipe on the quickstart's text, three seeds against the clock
# make test         the same set-up, then the test suite without the long runs on a cluster
# make unit         the same set-up, then the tests that need a few short processes: some minutes
# make test_avx2    the shorter tests that train, as on a CPU without instructions for bf16
# make cluster      runs on a SLURM of two hosts, made on this machine: root, six minutes or more
# make soak         a run killed 30 times on changing layouts, compared with one that never stopped
# make gpu          on a machine with a GPU: its tests, and BERT-large against others (SHARDS=folder)
# make check        format, lint, types, import rules

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One file of tests a core at a time. Tests of real processes take all cores, one after the other.
UNIT := $(BIN)/python -m pytest tests/unit -n auto --maxprocesses 8 --dist loadfile

# A CPU of 2013 to 2019, imitated: its vector instructions are all that the libraries may use.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: quickstart speedrun test unit test_avx2 cluster soak gpu check format clean

quickstart:
	@start=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/installed && \
	$(BIN)/python launch/quickstart.py --setup_seconds $$(($$(date +%s) - start))

speedrun: $(VENV)/installed
	$(BIN)/python launch/speedrun.py

test: $(VENV)/installed
	$(UNIT)
	$(BIN)/python -m pytest tests/integration tests/cluster -m "not (cluster and slow)"

unit: $(VENV)/installed
	$(UNIT) -m "not slow"

test_avx2: $(VENV)/installed
	$(AVX2) $(UNIT) -m "trains and not slow"
	$(AVX2) $(BIN)/python -m pytest tests/integration -m "trains and not slow"

cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m cluster

soak: $(VENV)/installed
	$(BIN)/python -m tests.soak

SHARDS ?= data/quickstart/shards_128
SIZES ?= --train_batch_size 640 --micro_batch_size 320
gpu: export PATH := $(abspath $(BIN)):$(PATH)
gpu: $(VENV)/installed
	mkdir -p runs/gpu
	$(BIN)/python launch/doctor.py --output_dir runs/gpu --json runs/gpu/doctor.json
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/python launch/benchmark.py train --shards $(SHARDS) --json runs/gpu/benchmark.json \
	    --model configs/model/bert_large_fast.json $(SIZES) \
	    --matmul_roofline --against compiled plain_torch transformers transformers_sorted
	$(BIN)/deepspeed --num_gpus 1 launch/pretrain.py --deepspeed_config configs/zero2.json \
	    --shards $(SHARDS) --output_dir runs/gpu/readme --num_train_steps 100 --warmup_steps 10 \
	    --log_interval 20

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dist_bert data_prep launch tests
	$(BIN)/python -m pytest -q tests/unit/test_import_rules.py

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
