# Every target does its own set-up. The set-up runs again only when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := notebooks,models,test
WORKERS ?= 2
OPTIONS ?=
# A folder of wheels to install from, where there is no network: make walkthrough WHEELS=build/wheelhouse
WHEELS ?=

# A notebook kernel must be the one of this environment, not one that the user installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help walkthrough test lint lab site figures evidence wheelhouse format clean constraints

help:  ## show this list
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  %-12s %s\n", $$1, $$2 }'

walkthrough: $(STAMP)  ## run the notebooks and render them to an offline page
	$(BIN)/fusionlib notebooks run $(OPTIONS)

test: lint  ## lint, format and type check, and all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## rules, formatting and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(STAMP)  ## open working copies of the notebooks, in lab/, in JupyterLab
	$(BIN)/fusionlib notebooks lab

site: $(STAMP)  ## render notebooks that already ran
	$(BIN)/fusionlib notebooks site

figures: $(STAMP)  ## draw the README's pictures from the notebooks again
	$(BIN)/fusionlib notebooks run 00_the_nine_microseconds 04_rewriting
	$(BIN)/fusionlib notebooks picture 00_the_nine_microseconds replay-figure docs/figures/replay
	$(BIN)/fusionlib notebooks picture 04_rewriting playback docs/figures/rewrite

# One after the other, and nothing else on the GPU: Inductor chooses its launches by the clock.
BENCH := $(BIN)/fusionlib bench --out data/benchmarks
evidence: $(STAMP)  ## measure and record what data/ holds again, on a GPU
	$(BENCH) --shapes 32x128 --contexts alone
	$(BENCH) --shapes 16x128 48x128 64x128 mamba2 per_token --tokens 1 8 64 1024 8192 \
	    --contexts alone --gates contiguous
	$(BENCH) --shapes 32x128 --contexts producer chain --gates contiguous --tokens 1 64 1024 8192 --dependent-launch
	$(BENCH) --sweep --shapes 32x128 mamba2 per_token --tokens 64 256 1024 4096 8192 32768 \
	    --contexts alone --gates contiguous
	$(BENCH) --producers rms_norm act_and_mul --contexts alone
	$(BENCH) --step --record data/steps
	$(BENCH) --model qwen3_next --layers 12
	$(BENCH) --versions
	$(BIN)/fusionlib record

# torch comes from its CPU builds, because its default on Linux brings gigabytes of CUDA that a laptop cannot use. A wheel
# fits one system and one Python, so this runs on one machine of each kind. The last line installs nothing: it fails
# unless a machine without a network could.
CPU_BUILDS ?= https://download.pytorch.org/whl/cpu
wheelhouse: $(STAMP)  ## collect what an installation without a network needs, in build/wheelhouse
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheelhouse \
	    --extra-index-url $(CPU_BUILDS) -c constraints.txt '.[$(EXTRAS)]'
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
	    --no-index --find-links build/wheelhouse -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "wheels: build/wheelhouse, $$(du -sh build/wheelhouse | cut -f1); on the other machine: make walkthrough WHEELS=build/wheelhouse"

format: $(STAMP)  ## format the code, fix what ruff can fix, strip notebook outputs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@for notebook in notebooks/*.ipynb; do \
	    if [ -e "$$notebook" ]; then $(BIN)/nbstripout --keep-id "$$notebook"; fi; \
	done

clean:  ## remove what the other targets made, the environment included
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fusionlib tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
	    echo "error: no '$(PYTHON)' found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1), and fusionlib needs Python 3.11 or newer;" \
	         "name another one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	    echo "error: '$(PYTHON)' cannot create environments; install its venv module (Debian, Ubuntu: python3-venv)" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(WHEELS),--no-index --find-links $(WHEELS)) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# The newest set that the ranges allow, resolved in an environment of its own. What belongs to one platform is left
# out: torch pins its own CUDA or ROCm packages exactly, and a local version such as +cpu names one build of many.
constraints:  ## resolve the tested set again and write constraints.txt
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[$(EXTRAS)]'
	{ sed -n '/^#/p' constraints.txt; \
	  build/constraints/bin/python -m pip freeze --all --exclude pip --exclude fusionlib \
	    | sed -e '/^nvidia[-_]/d' -e '/^cuda[-_]/d' -e 's/+[A-Za-z0-9.]*$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints
