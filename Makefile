PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types docs clean

# The demo installs what it needs; the tests, lint and types add their own tools to the same environment.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[vision]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

# Twenty labelled pictures a class: with all of them every network of the zoo answers 99 % of the digits.
demo: $(VENV)/.demo
	$(BIN)/stillroom distill --data.per_class 20 --recipe.epochs 60 --out runs/demo --overwrite

# One thread for each of the two workers: more of them only wait for each other.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) runs
