# Everything a person does here; CI runs these targets and nothing else.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup
TYPING := build/typing/funcmq
ROOMS := broker forwarder endpoint client
FACE := $(filter-out __pycache__,$(notdir $(wildcard funcmq/*)))

# make demo DIR=/your/files
DIR ?=
# make test ARGS="tests/unit -k codec"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos long lint format types docs bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything; install RabbitMQ and PostgreSQL if there are none (apt-get, with sudo where you are not root)
	@$(PY) -m funcmq.dev.install

demo: $(STAMP) ## Real work on real files, on a private fabric: the standard library, or DIR=/your/files
	@$(PY) -m funcmq.dev.install rabbitmq
	@$(VENV)/bin/funcmq dev -- $(PY) examples/metadata.py $(DIR)

# two at a time: most tests wait for something; those that share a fabric or a broker stay together (tests/conftest.py)
SPREAD := -n 2 --dist loadgroup --no-loadscope-reorder

test: setup ## The tests but for `make chaos` (some of them: ARGS="tests/unit -k codec")
	@$(PY) -m pytest $(SPREAD) $(ARGS)

chaos: setup ## The tests that kill processes under work
	@$(PY) -m pytest $(SPREAD) -m chaos $(ARGS)

long: setup ## The same laws over more tasks, more kills and a second Python (many minutes)
	@$(PY) -m pytest $(SPREAD) -m long $(ARGS)

lint: $(STAMP) ## Style, by ruff
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(STAMP) ## Put the code into the form that lint wants
	@$(VENV)/bin/ruff format .

types: $(STAMP) $(TYPING) ## Types, by mypy in strict mode
	@$(VENV)/bin/mypy -p funcmq

docs: $(STAMP) ## The documentation as offline HTML, in build/docs; warnings are errors
	@$(PY) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs

bench: setup ## Figures beside a peer, in the same run
	@$(VENV)/bin/funcmq dev -- $(PY) -m bench $(ARGS)

clean: ## Remove what the other targets made (not RabbitMQ, not PostgreSQL)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml
	@python=; \
	for found in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$found -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$found; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Error: funcmq needs Python 3.11 or later; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "Error: $$python has no venv module; install it: sudo apt-get install python3-venv (or your system's package of it)" >&2; exit 1; \
	fi; \
	if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then $$python -m venv --clear $(VENV); fi
	@echo "Installing funcmq and what it needs into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

# Type checkers cannot read package_dir of setup.cfg: they are shown a tree of links in which every folder has its installed name.
$(TYPING): $(wildcard funcmq/*) Makefile
	@rm -rf $(TYPING) && mkdir -p $(TYPING)
	@for name in $(FACE); do ln -s ../../../funcmq/$$name $(TYPING)/$$name; done
	@for room in $(ROOMS); do ln -s ../../../$$room $(TYPING)/$$room; done
