# make train, make test: each makes .venv and installs what it needs; a second call does not.
# The same without make, for Windows, is in the README.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test gradcheck lint

train: .venv/train
	$(BIN)/python gpt2_train.py

test: .venv/test
	$(BIN)/python -m pytest

gradcheck: .venv/train
	$(BIN)/python gradcheck.py

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
