# make demo      everything from nothing: install, simulate, train, evaluate, print the table
# make test      all tests
# make notebooks run the notebooks and store their outputs; write train.py from notebook 04
# make report    a run folder as one HTML file:  make report RUN=runs/NAME
# make sweep     several settings, then their comparison:  make sweep SWEEP="--mask random equispaced --jobs 2"
# make scoreboard    what other systems claim, and what we measure
# make badges    links to Colab and Binder, once the address is known:  make badges REPOSITORY=owner/name
PYTHON ?= python3
BIN = .venv/bin
RUN = runs/unet
SWEEP = --acceleration 4 8 --center-fraction 0.08 0.04 --model unet magnitude_unet

demo: setup
	$(BIN)/python train.py --resume

test: setup
	$(BIN)/pip install --quiet --no-deps fastmri==0.3.0  # the field's reference, an oracle for the tests only
	$(BIN)/python -m pytest --cov=mri_utils  # fails below the coverage that pyproject.toml asks for

notebooks: setup
	$(BIN)/python notebooks/refresh.py

report: setup
	@$(BIN)/python notebooks/publish.py report --run "$(RUN)"

sweep: setup
	@$(BIN)/python notebooks/sweep.py $(SWEEP)

scoreboard: setup
	@$(BIN)/python notebooks/publish.py scoreboard

badges: setup
	@$(BIN)/python notebooks/badges.py $(REPOSITORY)

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.PHONY: demo test notebooks report sweep scoreboard badges setup
