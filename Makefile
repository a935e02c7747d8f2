# make train, make test, make lessons: each makes .venv and installs what it needs; a second call
# does not. The same without make, for Windows, is in the README.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test faults gradcheck lint lessons

train: .venv/train
	$(BIN)/python gpt2_train.py

test: .venv/test
	$(BIN)/python -m pytest --numprocesses auto

# make faults KILLS=1000 SEED=7
faults: KILLS ?= 200
faults: .venv/test
	KILLS=$(KILLS) $(BIN)/python -m pytest tests/faults --capture=no

gradcheck: .venv/train
	$(BIN)/python gradcheck.py

lessons: .venv/lessons
	$(BIN)/jupyter lab lessons

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.venv/train: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[test]
	touch .venv/train $@

.venv/lessons: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[lessons]
	touch .venv/train $@
