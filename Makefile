# robust: every command that the README names. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPECS := $(shell find experiments -name '*.yaml' -not -path '*/sweeps/*' | sort)
REPRODUCE := $(addprefix reproduce-,$(subst /,-,$(patsubst experiments/%.yaml,%,$(SPECS))))
# One process per core: the tests keep torch to one thread each.
PYTEST := $(BIN)/python -m pytest -n auto
# Overrides for the reproduce targets and the tables, such as ARGS="data.root=FOLDER seed=1".
ARGS ?=
SWEEPS := $(patsubst experiments/%.yaml,%,$(sort $(wildcard experiments/sweeps/*.yaml)))
# Each on a core of its own.
SWEEP = OMP_NUM_THREADS=1 $(BIN)/robust sweep

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format smoke tables clean $(REPRODUCE)

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 24
	@echo "  reproduce-NAME        Train, evaluate and compare with the claim; ARGS=\"data.root=PATH\" for overrides:"
	@printf '    %s\n' $(REPRODUCE)

# The stamp is newer than pyproject.toml when the environment is as that file asks.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

install: $(VENV)/.installed ## Make .venv and install everything into it.

demo: install ## Train a natural and a robust digits model, attack both, print the tables.
	$(BIN)/robust demo

test: install ## Run all tests.
	$(PYTEST)

test-slow: install ## Run only the slow tests.
	$(PYTEST) -m slow

check: install ## Format, lint, types and fast tests: before every commit.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m 'not slow' -q

format: install ## Format the code and sort imports.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smoke: install ## Train and evaluate every smoke spec, in seconds each.
	@for spec in experiments/smoke/*.yaml; do echo "== $$spec"; $(BIN)/robust train $$spec --resume --quiet || exit 1; done

# Two processes share the rows, beginning from either end; then the tables are written, which trains nothing unless a
# process was ended.
tables: install ## Train and attack every row of every sweep (hours; again to go on), for the tables of README.md.
	@{ $(foreach sweep,$(SWEEPS),$(SWEEP) $(sweep) $(ARGS) --quiet >/dev/null; )} & \
	{ $(foreach sweep,$(shell printf '%s\n' $(SWEEPS) | sort -r),$(SWEEP) $(sweep) $(ARGS) --quiet >/dev/null; )}; wait
	@status=0; $(foreach sweep,$(SWEEPS),$(SWEEP) $(sweep) $(ARGS) --quiet --into README.md || status=$$?; )exit $$status

clean: ## Remove the environment, caches and build results (runs are kept).
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# reproduce-mnist-pgd_at runs experiments/mnist/pgd_at.yaml.
define reproduce_rule
reproduce-$(subst /,-,$(1)): install
	$(BIN)/robust reproduce $(1) $(ARGS)
endef
$(foreach spec,$(patsubst experiments/%.yaml,%,$(SPECS)),$(eval $(call reproduce_rule,$(spec))))
