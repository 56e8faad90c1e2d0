# make demo      everything from nothing: install, simulate, train, evaluate, print the table
# make check     the fast tests, a minute or two: style, types, properties, golden values, a tiny training, a notebook
# make test      all tests, and their coverage
# make notebooks run the notebooks and store their outputs; write train.py from notebook 04
# make report    a run folder as one HTML file:  make report RUN=runs/NAME
# make sweep     several settings, then their comparison:  make sweep SWEEP="--mask random equispaced --jobs 2"
# make scoreboard    what other systems claim, and what we measure
# make site      the book as static pages, for any host: site/pages (docs/site.md)
# make badges    links to Colab and Binder, once the address is known:  make badges REPOSITORY=owner/name
# With any of them: PYTHON=python3.12 makes .venv with that Python, TORCH=cpu or TORCH=cuda takes that build of torch
# (cuda where there is an NVIDIA GPU, else the small one); see tools/setup.py.
PYTHON ?= python3
# threads that wait sleep, as mri_parts/__init__.py has it: here also for what loads torch before that
export OMP_WAIT_POLICY ?= passive
TORCH =
SETUP = $(PYTHON) tools/setup.py $(if $(TORCH),--torch $(TORCH))
BIN = .venv/bin
RUN = runs/unet
SWEEP = --acceleration 4 8 --center-fraction 0.08 0.04 --model unet magnitude_unet

# the fast tests, and of the slow ones a tiny training and a notebook
CHECK = $(patsubst %,tests/test_%.py,house setup install fourier metrics properties) \
	tests/test_masks.py::test_same_lines_as_the_fastmri_package \
	tests/test_training.py::test_files_of_the_run_folder tests/test_training.py::test_structure_of_metrics_json \
	"tests/test_notebooks.py::test_runs_from_a_foreign_directory[01_load_kspace]"

# several processes (how many: tests/conftest.py), each with whole files of tests: what a file simulates and trains is
# made once; the files begin in the order of tests/conftest.py, not those with most tests first
SIDE_BY_SIDE = -n auto --dist loadfile --no-loadscope-reorder

demo: setup
	$(BIN)/python train.py --resume

check: setup-test
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(CHECK)

test: setup-test
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov=mri_utils --cov=mri_parts  # fails below pyproject.toml's coverage

notebooks: setup
	$(BIN)/python tools/refresh.py

report: setup
	@$(BIN)/python tools/publish.py report --run "$(RUN)"

sweep: setup
	@$(BIN)/python tools/sweep.py $(SWEEP)

scoreboard: setup
	@$(BIN)/python tools/publish.py scoreboard

site:
	@$(PYTHON) tools/build_site.py

badges: setup
	@$(BIN)/python tools/badges.py $(REPOSITORY)

setup:
	@$(SETUP)

setup-test:
	@$(SETUP) --tests

.PHONY: demo test check notebooks report sweep scoreboard site badges setup setup-test
