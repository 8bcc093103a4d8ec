# Commands of the README and for development. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPECS := $(shell find experiments -name '*.yaml' -not -path '*/sweeps/*' -not -path '*/findings/*' -not -path '*/speedrun/*' | sort)
REPRODUCE := $(addprefix reproduce-,$(subst /,-,$(patsubst experiments/%.yaml,%,$(SPECS))))
# One process per core with one thread of torch each; idle processes take tests from others. Bytecode is written even if
# the environment disables it; otherwise every process of a test would compile the package again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal
# Overrides for the reproduce targets and the tables, such as ARGS="data.root=FOLDER seed=1".
ARGS ?=
SWEEPS := $(patsubst experiments/%.yaml,%,$(sort $(wildcard experiments/sweeps/*.yaml)))
# Number of parallel processes, one per core.
SWEEP = OMP_NUM_THREADS=1 $(BIN)/robust sweep
# Checkpoint for `make bench`. Default: the digits model of the demo.
CHECKPOINT ?=
BENCH := experiments/results/bench
# Experiments that one GPU trains in minutes each.
QUICK := mnist/fast_at mnist/pgd_at cifar10/rs_fgsm cifar10/n_fgsm
# Optional folder of CIFAR-10 as JPEG files (train/CLASS/, test/CLASS/), on which fast_record is trained too.
JPEG ?=
# Goal of the record attempt over seeds: at least 50 % AutoAttack, or 48 % on JPEG, after at most 300 s of training.
RECORD := $(BIN)/robust reproduce cifar10/fast_record train.device=cuda
SEEDS := 0 1 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full test-cluster check format smoke findings recipes tables bench bench-gpu check-gpu reproduce-gpu-quick clean $(REPRODUCE)

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 24
	@echo "  reproduce-NAME        Train, evaluate and compare with the claim; ARGS=\"data.root=PATH\" for overrides:"
	@printf '    %s\n' $(REPRODUCE)

# The stamp is newer than pyproject.toml if the environment is up to date.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

install: $(VENV)/.installed ## Make .venv and install everything into it.

demo: install ## Train a natural and a robust digits model, attack both, print the tables.
	$(BIN)/robust demo

test: install ## Run the tests; of large products of settings, only every pair of values.
	$(PYTEST) -m 'not full and not cluster'

test-full: install ## Run the tests that `make test` omits: full products and long comparisons.
	$(PYTEST) -m full

# In one process, because all tests share one SLURM. It is installed from Debian's packages, which needs root.
test-cluster: install ## Run the tests on a real Ray and a real SLURM (minutes; installs both; SLURM needs root).
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[ray,slurm]'
	@if [ "$$(id -u)" = 0 ] && ! command -v slurmctld >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client munge; fi
	$(BIN)/python -m pytest -m cluster tests/cluster

# mypy keeps one core busy, so it runs next to the tests.
check: install ## Format, lint, types and fast tests: before every commit.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(BIN)/mypy & types=$$!; $(PYTEST) -m 'not slow and not full and not cluster' -q; tests=$$?; wait $$types && exit $$tests

format: install ## Format the code and sort imports.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smoke: install ## Train and evaluate every smoke spec, in seconds each.
	@for spec in experiments/smoke/*.yaml; do echo "== $$spec"; $(BIN)/robust train $$spec --resume --quiet || exit 1; done

# Two processes share the rows, starting from either end; then the tables are written.
tables: install ## Train and attack every row of every sweep (hours; run again to resume), for experiments/results/README.md.
	@{ $(foreach sweep,$(SWEEPS),$(SWEEP) $(sweep) $(ARGS) --quiet >/dev/null; )} & \
	{ $(foreach sweep,$(shell printf '%s\n' $(SWEEPS) | sort -r),$(SWEEP) $(sweep) $(ARGS) --quiet >/dev/null; )}; wait
	@status=0; $(foreach sweep,$(SWEEPS),$(SWEEP) $(sweep) $(ARGS) --quiet --into experiments/results/README.md || status=$$?; )exit $$status

findings: install ## Test every paper's claim at a small size (hours; run again to resume); ARGS="data.root=PATH".
	@mkdir -p experiments/results/findings
	@status=0; for file in experiments/findings/*.yaml; do name=$$(basename $$file .yaml); \
		OMP_NUM_THREADS=1 $(BIN)/robust reproduce findings/$$name $(ARGS) --out experiments/results/findings/$$name.json || status=$$?; \
	done; $(BIN)/robust list findings --into experiments/findings/README.md; exit $$status

recipes: install ## Write the index of shipped experiments into experiments/README.md.
	$(BIN)/robust list experiments --into experiments/README.md

# One thread, because ratios between processes that share cores are noise.
# Packages that are measured for comparison.
$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

bench: $(VENV)/.peers ## Measure training, evaluations, input, architectures, scaling (two cores: two hours), for experiments/results/bench/README.md.
	@mkdir -p $(BENCH)
	@export OMP_NUM_THREADS=1; set -e; \
	$(BIN)/robust bench train $(patsubst %,--defense %,natural pgd_at trades n_fgsm rs_fgsm) --batch-size 64 --rounds 5 \
		--out $(BENCH)/training_methods.json; \
	$(BIN)/robust bench train $(patsubst %,--defense %,natural trades n_fgsm rs_fgsm) --batch-size 128 --rounds 3 \
		--out $(BENCH)/training_methods_128.json; \
	$(BIN)/robust bench train --defense pgd_at --defense trades --weights awp --batch-size 64 --batch-size 128 \
		--rounds 5 --out $(BENCH)/training_awp.json; \
	$(BIN)/robust bench train --batch-size 128 --rounds 5 --out $(BENCH)/training_batch.json; \
	$(BIN)/robust bench train --batch-size 128 --rounds 7 --compile --out $(BENCH)/training_compiled.json; \
	$(BIN)/robust bench train --batch-size 128 --rounds 5 --precision bf16 --out $(BENCH)/training_bf16.json; \
	$(BIN)/robust bench train --defense pgd_at --defense trades --weights none --weights awp --width 64 \
		--batch-size 64 --batch-size 128 --rounds 3 --out $(BENCH)/training_wide.json; \
	$(BIN)/robust bench train $(patsubst %,--defense %,natural n_fgsm rs_fgsm) --width 64 --batch-size 64 \
		--batch-size 128 --rounds 3 --out $(BENCH)/training_wide_steps.json; \
	checkpoint='$(CHECKPOINT)'; \
	if [ -z "$$checkpoint" ]; then \
		$(BIN)/robust train demo/digits_pgd_at --resume --quiet >/dev/null; \
		checkpoint=$$(ls runs/digits_pgd_at/*/checkpoints/best.pt | head -n 1); \
	fi; \
	$(BIN)/robust bench eval "$$checkpoint" $(ARGS) --examples 200 --rounds 5 --out $(BENCH)/evaluation.json; \
	$(BIN)/robust bench autoattack "$$checkpoint" $(ARGS) --examples 50 --rounds 3 --compile --out $(BENCH)/speed.json; \
	$(BIN)/robust bench data --rounds 5 --out $(BENCH)/data.json; \
	$(BIN)/robust bench architectures --out $(BENCH)/architectures.json; \
	$(BIN)/robust bench scaling --out $(BENCH)/scaling.json; \
	$(BIN)/robust bench report $(BENCH)/training_*.json --into $(BENCH)/README.md; \
	for name in evaluation speed data architectures scaling; do \
		$(BIN)/robust bench report $$(ls $(BENCH)/$$name.json $(BENCH)/$${name}_*.json 2>/dev/null) \
			--into $(BENCH)/README.md; \
	done

# The checkpoint comes first, because it needs the images. AutoAttack on all test images uses our engine.
bench-gpu: $(VENV)/.peers ## The same at a GPU's sizes, into experiments/results/bench/gpu; ARGS="data.root=PATH".
	@mkdir -p $(BENCH)/gpu
	@set -e; \
	checkpoint='$(CHECKPOINT)'; \
	if [ -z "$$checkpoint" ]; then \
		$(BIN)/robust train cifar10/fast_record train.device=cuda 'evaluate={}' $(ARGS) --resume --quiet; \
		checkpoint=$$(ls runs/cifar10_fast_record/*/checkpoints/best.pt | head -n 1); \
	fi; \
	for way in fp32 bf16 'bf16 --compile'; do \
		$(BIN)/robust bench train --defense pgd_at --defense n_fgsm --defense trades --width 64 --batch-size 256 \
			--precision $$way --device cuda --out "$(BENCH)/gpu/training_$$(echo $$way | tr -d ' -').json"; \
	done; \
	$(BIN)/robust bench data --batch-size 256 --device cuda --out $(BENCH)/gpu/data.json; \
	$(BIN)/robust bench architectures --batch-size 128 --device cuda --out $(BENCH)/gpu/architectures.json; \
	$(BIN)/robust bench scaling --device cuda --workers 1 --out $(BENCH)/gpu/scaling.json; \
	$(BIN)/robust bench eval "$$checkpoint" $(ARGS) --examples 2000 --device cuda --out $(BENCH)/gpu/evaluation.json; \
	$(BIN)/robust bench autoattack "$$checkpoint" $(ARGS) --device cuda --compile --out $(BENCH)/gpu/autoattack.json; \
	for file in $(BENCH)/gpu/*.json; do $(BIN)/robust bench report $$file >$${file%.json}.md; done; \
	$(BIN)/robust eval "$$checkpoint" $(ARGS) --attack autoattack --precision fast --compile --device cuda \
		>$(BENCH)/gpu/autoattack_whole.txt; \
	cat $(BENCH)/gpu/autoattack_whole.txt

# Also works offline: uses the system's Python if there is no .venv.
check-gpu: ## Check a GPU in about ten minutes: tests, verdicts, speed, for experiments/results/bench/gpu/check.json.
	@mkdir -p $(BENCH)/gpu
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m robustcli bench gpu --device cuda --out $(BENCH)/gpu/check.json

reproduce-gpu-quick: install ## Train and evaluate experiments that one GPU trains in minutes; ARGS="data.root=PATH", JPEG=FOLDER.
	@for name in $(QUICK); do $(BIN)/robust reproduce $$name train.device=cuda $(ARGS) || exit 1; done
	@for seed in $(SEEDS); do \
		$(RECORD) $(ARGS) seed=$$seed || exit 1; \
		[ -z '$(JPEG)' ] || $(RECORD) data.name=image_folder data.root='$(JPEG)' seed=$$seed || exit 1; \
	done
	$(BIN)/robust report runs/cifar10_fast_record

clean: ## Remove the environment, caches and build results (runs are kept).
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# reproduce-mnist-pgd_at runs experiments/mnist/pgd_at.yaml.
define reproduce_rule
reproduce-$(subst /,-,$(1)): install
	$(BIN)/robust reproduce $(1) $(ARGS)
endef
$(foreach spec,$(patsubst experiments/%.yaml,%,$(SPECS)),$(eval $(call reproduce_rule,$(spec))))
