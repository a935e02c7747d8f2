# make train, make test, make lessons: each makes .venv and installs what it needs; a second call
# does not. The same without make, for Windows, is in the README.
# make PYTHON=python3.13 test: the same with another Python, in an environment of its own.
ifdef PYTHON
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
PYTHON = python3
VENV = .venv
endif
BIN = $(VENV)/bin

.PHONY: train test faults gradcheck lint lessons

train: $(VENV)/train
	$(BIN)/python gpt2_train.py

test: $(VENV)/test
	$(BIN)/python -m pytest --numprocesses auto

# make faults KILLS=1000 MUTANTS=10000 SEED=7
faults: KILLS ?= 200
faults: MUTANTS ?= 2000
faults: $(VENV)/test
	KILLS=$(KILLS) MUTANTS=$(MUTANTS) $(BIN)/python -m pytest tests/faults --capture=no

gradcheck: $(VENV)/train
	$(BIN)/python gradcheck.py

lessons: $(VENV)/lessons
	$(BIN)/jupyter lab lessons

lint: $(VENV)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

$(VENV)/train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[test]
	touch $(VENV)/train $@

$(VENV)/lessons: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[lessons]
	touch $(VENV)/train $@
