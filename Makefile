# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Each sets up its own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
LAVA := .venv-lava

.PHONY: demo test lint clean

$(VENV)/ready-demo: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/ready-test: $(VENV)/ready-demo
	$(BIN)/python -m pip install --quiet -c constraints.txt 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,train]'
	touch $@

demo: $(VENV)/ready-demo
	$(BIN)/python examples/demo.py --output $(OUT)

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lava needs a Python 3.10 of its own. Where none is found its tests are skipped, with this reason.
$(VENV)/ready-lava: $(VENV)/ready-test
	test -n "$$SNNKIT_LAVA_PYTHON" || $(BIN)/snnkit lava-env create --path $(LAVA) \
		|| echo "no Lava here: the tests that run it are skipped"
	touch $@

test: lint $(VENV)/ready-lava
	if [ -z "$$SNNKIT_LAVA_PYTHON" ] && [ -f $(LAVA)/lava-env.json ]; then \
		export SNNKIT_LAVA_PYTHON="$(CURDIR)/$(LAVA)/bin/python"; fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

clean:
	rm -rf $(VENV) $(LAVA) $(OUT) build *.egg-info
