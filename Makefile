# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-lowest lint types bench readme clean

demo: $(STAMP)
	$(BIN)/ras-dit demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# what meets diffusers, against the lowest supported one, put in front of the installed one; FLOPs follow from dimensions
LOWEST := $(VENV)/lowest
MEETS_DIFFUSERS := $(addprefix tests/test_,around.py cut_short.py embedded_ras.py exactness.py failures.py families.py forecast.py memory.py \
	pipelines.py reference.py region.py runs.py sampler.py static_memory.py video.py kept_results.py pretended_gpu.py routing.py controlnets.py)
test-lowest: $(STAMP)
	test -d $(LOWEST)/diffusers || $(BIN)/python -m pip install --quiet --no-deps --target $(LOWEST) diffusers==0.41.0
	PYTHONPATH=$(LOWEST) $(BIN)/python -m pytest -n 2 --dist worksteal -k "not flops" $(MEETS_DIFFUSERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed

readme: $(STAMP)
	$(BIN)/python -m benchmarks.readme $(ARGS)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ras-dit needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,train]"
	@touch $@

clean: # results stay: outputs/ holds what was painted, and votes
	rm -rf $(VENV)
