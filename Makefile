# Everything runs in .venv, which `make venv` builds once; only the package index is needed.
# COMET and BERTScore alone have an environment of their own, `make comet-env`, and so have the
# libraries of the official scorer, `make official-env`.

PYTHON ?= python3
# torch goes in first and by itself: left to the resolver it would be the newest one, which torchtune
# was not made for. On the public index this version is a CUDA build on Linux, of several gigabytes;
# the CPU build comes from PyTorch's own index (words for pip are taken here too):
#   make venv TORCH_SPEC="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH_SPEC ?= torch==2.13.0
# Words for pytest: make test PYTEST_ARGS="tests/config -k help"
PYTEST_ARGS ?=
# Benchmarks of `make bench`; each has --help, and --device cuda where it uses a GPU.
BENCH ?= train_step extract store loader plan scaling memory decode
# Folder with AN4's manifest.jsonl and recordings.
AN4_DATA ?= ../shared/data/speech
# Folder with real files of answers of the Instruction-following task; may be absent.
MCIF_OUTPUTS ?= ../shared/data/mcif_outputs

BIN := .venv/bin
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
  { echo "error: $(PYTHON): Python 3.11 or 3.12 is needed; try PYTHON=python3.11" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv comet-env official-env test lint demo demo-2026 an4 faults bench loops official-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/.installed ## build .venv with everything the demo and the tests need

.venv/.installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH_SPEC)
	$(BIN)/python -m pip install --quiet -e '.[demo,dev,peft]'
	@touch $@

# An environment of its own for COMET and BERTScore: unbabel-comet wants transformers before 5 and
# numpy before 2, this project the later ones. setuptools: an old torchmetrics imports pkg_resources.
# sentencepiece: 0.2.3 wants a protobuf that unbabel-comet does not allow.
comet-env: .venv-comet/.installed ## build .venv-comet, where COMET and BERTScore run

.venv-comet/.installed:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-comet
	.venv-comet/bin/python -m pip install --quiet $(TORCH_SPEC)
	.venv-comet/bin/python -m pip install --quiet unbabel-comet==2.2.7 "setuptools<81" \
	  bert-score==0.3.13 "sentencepiece<0.2.3"
	@touch $@

# What WER needs, in the versions that the official scorer pins. Its normaliser fetches OpenAI's list
# of spellings from the network each time; here the list comes from openai-whisper, of which
# nothing else is used.
official-env: .venv-official/.installed ## build .venv-official, the libraries of the official scorer

.venv-official/.installed:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-official
	.venv-official/bin/python -m pip install --quiet jiwer==3.0.5 whisper_normalizer==0.0.10
	.venv-official/bin/python -m pip install --quiet --no-deps openai-whisper==20250625
	@touch $@

test: venv ## run the tests
# One thread a process: the tensors are tiny and some tests start two processes. Two files at a
# time, each whole in one process: what a file's tests share is made once.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST_ARGS)

lint: venv ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

demo: venv ## train and score the whole system in the nano world, 13 to 18 minutes on two cores
	$(BIN)/python -m torchtune_speech.nano.demo

demo-2026: venv ## both versions of SpeechMapper beside the demo's system, some 30 minutes after `make demo`
	$(BIN)/python -m torchtune_speech.nano.demo_2026

an4: venv ## real people speaking: features, projector and scores on AN4
	$(BIN)/python -m torchtune_speech.nano.an4 $(AN4_DATA)

faults: venv ## kill runs at a thousand random moments, let them go on, compare with whole ones
	$(BIN)/python tests/reliability/campaign.py --kills 1000

bench: venv ## measure everything beside its peers, into benchmarks/results; BENCH="plan store" for some
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

loops: venv ## repetition loops found and cured: real outputs, then the models of make demo
	$(BIN)/python studies/loops.py texts $(MCIF_OUTPUTS)
	$(BIN)/python studies/loops.py policies --run runs/nano --human $(AN4_DATA)/manifest.jsonl

official-check: venv official-env ## compare error rates with those of the official scorer
	$(BIN)/python tests/evaluation/official/compare.py --outputs $(MCIF_OUTPUTS)

clean: ## remove all environments and caches; runs/ stays
	rm -rf .venv .venv-comet .venv-official .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
