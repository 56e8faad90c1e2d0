# make demo      everything from nothing: install, simulate, train, evaluate, print the table
# make test      all tests
# make notebooks run the notebooks and store their outputs; write train.py from notebook 04
PYTHON ?= python3
BIN = .venv/bin

demo: setup
	$(BIN)/python train.py --resume

test: setup
	$(BIN)/pip install --quiet --no-deps fastmri==0.3.0  # the field's reference, an oracle for the tests only
	$(BIN)/python -m pytest --cov=mri_utils  # fails below the coverage that pyproject.toml asks for

notebooks: setup
	$(BIN)/python notebooks/refresh.py

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.PHONY: demo test notebooks setup
