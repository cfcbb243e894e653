# On a fresh machine: `make demo`, `make test`, `make docs`, `make study`.
# PYTHON chooses the interpreter, VENV the folder of the virtual environment.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PYDOCS := $(VENV)-docs/bin/python
PAGE := benchmarks/human_study/page

# Without it, PyTorch's threads spin while they wait: a second busy process makes everything ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint docs study clean

demo: $(VENV)/.installed
	$(PY) examples/quickstart.py $(DEMO_ARGS)

test: lint
	$(PY) -m pytest --numprocesses auto --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# The human study as participants see it, with digits: http://127.0.0.1:8000. It needs Node.js's npm.
study: $(PAGE)/node_modules/.package-lock.json out/study/stimuli/manifest.json
	$(PY) -m benchmarks.human_study serve --stimuli out/study/stimuli --data out/study/preview --preview $(STUDY_ARGS)

out/study/stimuli/manifest.json: | $(VENV)/.installed
	$(PY) -m benchmarks.human_study stimuli --dataset digits --out $(@D)

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package.json $(PAGE)/package-lock.json
	npm ci --prefix $(PAGE) --no-audit --no-fund
	touch $@

# adv-lib and cleverhans need torch alone, but ask for visdom, which no longer builds, and tensorflow-probability.
$(VENV)/.installed: pyproject.toml constraints.txt scripts/cure_torchvision.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps adv-lib cleverhans
	$(PY) scripts/cure_torchvision.py
	touch $@

docs: $(VENV)-docs/.installed
	$(PYDOCS) -m sphinx --fail-on-warning --keep-going --nitpicky -d docs/_build/doctrees docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# torchattacks pins requests 2.25.1 and Sphinx needs a newer one, so pip refuses both in one go and `make docs` has an
# environment of its own. torchattacks works with the newer one: it comes last, without its requirements, which are there.
$(VENV)-docs/.installed: pyproject.toml constraints.txt docs/constraints.txt scripts/cure_torchvision.py
	$(PYTHON) -m venv $(VENV)-docs
	grep -v "^requests==" constraints.txt > $(VENV)-docs/constraints.txt
	$(PYDOCS) -m pip install --quiet -c $(VENV)-docs/constraints.txt -c docs/constraints.txt --editable ".[docs]"
	$(PYDOCS) -m pip install --quiet -c constraints.txt --no-deps torchattacks
	$(PYDOCS) scripts/cure_torchvision.py
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs docs/_build out
