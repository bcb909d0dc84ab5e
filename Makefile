# Everything a newcomer needs: `make lab` to read and play, `make test` to check.
# Needs make and Python >= 3.11; the rest is installed into .venv on first use.
#
#   make test PYTHON=python3.12       another Python (delete .venv first, or name another VENV)
#   make lab CONSTRAINTS=             the newest packages instead of the versions tested together

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
LAB_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lab notebooks test paper paper-table lint sync format lock clean distclean

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
CACHE := $(CURDIR)/.cache

# Data that a loader downloads stay in the clone, for the lab too.
export VAELIB_CACHE ?= $(CACHE)/vaelib

# Sockets have a limit of about 100 characters: in a deeply nested clone the system's folder for
# temporary files has to do.
TMP := $(shell test $$(printf %s '$(CACHE)' | wc -c) -le 60 && echo '$(CACHE)/tmp')

# `make test` and `make notebooks` write nothing outside the clone: whatever a package wants to
# keep in the home folder goes to .cache, and no personal setting of Jupyter or matplotlib can
# change a result.
CONTAINED = env -u JUPYTER_PATH -u JUPYTER_CONFIG_PATH -u MPLBACKEND -u PYTHONPATH -u PYTHONSTARTUP \
	HOME='$(CACHE)/home' \
	$(if $(TMP),TMPDIR='$(TMP)') \
	XDG_CACHE_HOME='$(CACHE)/xdg/cache' \
	XDG_CONFIG_HOME='$(CACHE)/xdg/config' \
	XDG_DATA_HOME='$(CACHE)/xdg/data' \
	XDG_STATE_HOME='$(CACHE)/xdg/state' \
	MPLCONFIGDIR='$(CACHE)/matplotlib' \
	IPYTHONDIR='$(CACHE)/ipython' \
	JUPYTER_CONFIG_DIR='$(CACHE)/jupyter/config' \
	JUPYTER_DATA_DIR='$(CACHE)/jupyter/data' \
	JUPYTER_RUNTIME_DIR='$(CACHE)/jupyter/runtime' \
	JUPYTER_PREFER_ENV_PATH=1 \
	JUPYTER_PLATFORM_DIRS=0 \
	PYTHONNOUSERSITE=1 \
	PYDEVD_DISABLE_FILE_VALIDATION=1

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## create .venv and install (the other targets do it when needed)

$(READY): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1): name a newer one with make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time: PyTorch is large) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@mkdir -p '$(CACHE)'
	@$(if $(CONSTRAINTS),$(if $(filter file,$(origin CONSTRAINTS)),$(INSTALL_KNOWN),$(INSTALL) -c $(CONSTRAINTS)),$(INSTALL))
	@touch $@
	@echo "Ready."

# -qq hides pip's warnings and shows its errors.
INSTALL = $(PY) -m pip --disable-pip-version-check install -qq -e '.[lab,test,browser]'

# The versions known to work together, where this Python and platform have them; else the newest.
# A file named by hand (CONSTRAINTS=...) must be met.
define INSTALL_KNOWN
$(INSTALL) --only-binary :all: -c $(CONSTRAINTS) >'$(CACHE)/setup.log' 2>&1 || { \
  echo "The versions in $(CONSTRAINTS) cannot be had here (.cache/setup.log says why): taking the newest that fit ..."; \
  $(INSTALL); }
endef

lab: $(READY)  ## open the course in JupyterLab, at the first notebook
	env -u MPLBACKEND $(PY) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks/00_start_here.ipynb

notebooks: $(READY)  ## run every notebook in place, without a browser
	@mkdir -p '$(CACHE)/tmp' '$(CACHE)/home'
	@$(CONTAINED) $(PY) notebooks/run.py

# It changes no file of the clone: the pictures of the notebooks go to .cache.
test: lint  ## lint, unit tests, the notebooks' form, every notebook compared with its outputs
	@mkdir -p '$(CACHE)/tmp' '$(CACHE)/home'
	@echo "== Unit tests and the notebooks' form"
	@$(CONTAINED) OMP_NUM_THREADS=1 $(PY) -m pytest -q -p no:randomly -n $(JOBS) --dist loadfile tests
	@echo "== Notebooks: every cell runs and prints what it printed when it was committed"
	@$(CONTAINED) OMP_NUM_THREADS=1 VAELIB_FIGURES='$(CACHE)/figures' \
	  $(PY) -m pytest -q -p no:randomly -n $(JOBS) --dist loadfile \
	  --nbval --nbval-current-env --nbval-cell-timeout 600 notebooks/[0-9]*.ipynb

paper: $(READY)  ## train what is missing in figures/paper (VAELIB_SCALE=paper; hours on a GPU)
	@$(PY) -m vaelib.experiments missing

paper-table: $(READY)  ## write the tables "paper, others, ours" into figures/paper/README.md
	@$(PY) -m vaelib.experiments table

lint: $(READY)  ## check the code's form (ruff)
	@echo "== Lint"
	@$(PY) -m ruff check -q .
	@$(PY) -m ruff format -q --check . || { $(PY) -m ruff format --check . ; echo "make format puts this right"; exit 1; }

format: $(READY)  ## put the code's form right (ruff)
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format .

sync: $(READY)  ## bring each notebook in step with its text in notebooks/py
	@$(PY) notebooks/pairs.py $(if $(FORCE),--force)

lock: $(READY)  ## write the installed versions to constraints.txt
	@{ echo "# One exact set of versions known to work together: what \`make\` installs where it can."; \
	   echo "# Renew: make distclean && make test CONSTRAINTS= && make lock"; \
	   $(PY) -m pip --disable-pip-version-check freeze --all --exclude-editable --exclude pip 2>/dev/null \
	     | grep -E '^[A-Za-z0-9._-]+==' | grep -viE '^(nvidia-|cuda-|triton)' | sed 's/+[a-z0-9.]*$$//'; } \
	   > constraints.txt.new && mv constraints.txt.new constraints.txt && touch $(READY)

clean:  ## remove caches (downloaded data too); keep .venv
	@rm -rf .cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -path './.venv*' -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf

distclean: clean  ## remove .venv too
	@rm -rf $(VENV) *.egg-info
