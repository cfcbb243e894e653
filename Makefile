# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON chooses the interpreter, VENV the folder of the virtual environment.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# Without it, PyTorch's threads spin while they wait: a second busy process makes everything ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(PY) examples/quickstart.py $(DEMO_ARGS)

test: lint
	$(PY) -m pytest --numprocesses auto --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

$(VENV)/.installed: pyproject.toml constraints.txt scripts/cure_torchvision.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(PY) scripts/cure_torchvision.py
	touch $@

clean:
	rm -rf $(VENV) out
