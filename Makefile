# `make demo` and `make test` do all their own set-up; they need python3 (3.11 or newer) and nothing else.

PYTHON ?= python3
WORKERS ?= 2
READY := .venv/.ready
BIN := .venv/bin

# The torch of test-newest and test-oldest: a version, or `newest`. Without it the newest environment has the one that
# .ci/held.txt holds, and the oldest one the lower bound of pyproject.toml.
TORCH ?=

# one thread per process: two test processes on two cores are faster than two threads each
THREADS := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
TEST := $(THREADS) $(BIN)/python -m pytest

# Whatever the newest releases warn of is an error, but for what we cannot mend, each with its reason:
# PEFT 0.21 asks transformers for a property that transformers 5.23 has renamed.
NEWEST_WARNINGS := -W error -W "ignore:\`is_gradient_checkpointing\` is deprecated:FutureWarning"

.PHONY: help demo demo-real test campaign audit test-real test-served test-web test-newest test-oldest test-gpu lock shapes test-slow lint types ci bench bench-gpu docs readme notebooks site results clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       an edit shown before and after, then a small comparison of editors"
	@echo "make demo-real  an edit of a real model, SmolLM2-135M (fetched once: 93 MB)"
	@echo "make test       all tests but the slow ones      make test-slow  the slow ones"
	@echo "make test-real  the main paths on SmolLM2 (fetched once: 93 MB)"
	@echo "make test-served  an edit of SmolLM2 in llama.cpp and vLLM (both set up once: 34 MB, 3.4 GB)"
	@echo "make test-web  the page of errata web in a real browser (set up once: 100 MB; needs chromium)"
	@echo "make campaign   10,000 broken inputs, 100 kills, faults of the system (ARGS='--inputs 500 --kills 10')"
	@echo "make audit      known vulnerabilities of the locked releases (needs the network)"
	@echo "make test-newest, make test-oldest   the same with the newest releases, and with the lower bounds of pyproject.toml"
	@echo "make lock       write requirements.lock: newest releases, for demo, test and CI"
	@echo "make lint       ruff                             make types      pyright"
	@echo "make shapes     tensor shapes in signatures, checked while tests run"
	@echo "make ci         what .ci/run does                make bench      speed ratios"
	@echo "make test-gpu   tests of editors and patches on a GPU, and equality with the CPU"
	@echo "make bench-gpu  all that a GPU changes, in minutes (both: ARGS='--device cpu', see docs/gpu.md)"
	@echo "make docs       write the command line's help and the settings of training into docs/"
	@echo "make readme     run the commands of README, the tour and the guides again and write down their output"
	@echo "make notebooks  run the notebooks of docs/notebooks again and keep what they show"
	@echo "make site       the documentation as a site, build/site/index.html; fails on any warning"
	@echo "make results    write docs/results-*.md again from the results in studies"
	@echo "make clean      remove caches and build products (.venv* and runs stay)"

NEW_ENOUGH = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed; try: make PYTHON=python3.12")'

$(READY): pyproject.toml requirements.lock .ci/environment.py .ci/versions.py
	$(NEW_ENOUGH)
	@$(PYTHON) .ci/environment.py locked
	@touch $(READY)

demo: $(READY)
	@$(BIN)/errata demo

demo-real: $(READY)
	@$(BIN)/errata demo --model smollm2

test: $(READY)
	@$(TEST) -n $(WORKERS)

test-newest:
	$(NEW_ENOUGH)
	@$(PYTHON) .ci/environment.py newest $(TORCH)
	@$(THREADS) .venv-newest/bin/python -m pytest -n $(WORKERS) $(NEWEST_WARNINGS)

test-oldest:
	$(NEW_ENOUGH)
	@$(PYTHON) .ci/environment.py oldest $(TORCH)
	@$(THREADS) .venv-oldest/bin/python -m pytest -n $(WORKERS)

lock:
	$(NEW_ENOUGH)
	@$(PYTHON) .ci/lock.py

# shapes in signatures are checked at run time, by a run of their own: the checker draws random
# numbers, which tests of the random state would notice
# (the classes of changes check shapes themselves, with messages for the user)
SHAPES := errata.model.lm,errata.model.logprobs,errata.model.passes,errata.model.tokens,errata.patch.around,errata.patch.deltas,errata.patch.export,errata.patch.factored,errata.patch.in_place,errata.patch.networks,errata.patch.parts,errata.patch.places,errata.patch.stack,errata.locate,errata.tuning,errata.tracing

shapes: $(READY)
	@$(TEST) -n $(WORKERS) tests/model tests/patch tests/locate tests/tuning tests/tracing --jaxtyping-packages=$(SHAPES),beartype.beartype

test-real: $(READY)
	@ERRATA_FETCH=1 $(TEST) -m real

# ARGS goes to python -m tests.robustness
campaign: $(READY)
	@$(THREADS) $(BIN)/python -m tests.robustness $(ARGS)

# an environment of its own, which is not part of the lock
audit:
	$(NEW_ENOUGH)
	@test -x .venv-audit/bin/pip-audit || ($(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit)
	@.venv-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict $(ARGS)

# VLLM=0 leaves out vLLM, whose environment takes minutes and 3.4 GB, once
VLLM ?= 1

test-served: $(READY)
	@$(PYTHON) .ci/served.py llama
	@if [ "$(VLLM)" != 0 ]; then $(PYTHON) .ci/served.py vllm; fi
	@ERRATA_FETCH=1 $(TEST) -m served

# SHOTS names a folder for pictures of the page
test-web: $(READY)
	@$(PYTHON) .ci/web.py
	@$(THREADS) ERRATA_WEB_SHOTS='$(SHOTS)' .web/bin/python -m pytest -m web tests/web tests/robustness

test-slow: $(READY)
	@$(TEST) -m slow

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(READY)
	@$(BIN)/pyright

ci: lint types shapes test

bench: $(READY)
	@$(BIN)/python -m benchmarks

# ARGS goes to python -m benchmarks.gpu; figures are written to runs/gpu
bench-gpu: $(READY)
	@$(BIN)/python -m benchmarks.gpu --out runs/gpu $(ARGS)

test-gpu: $(READY)
	@$(BIN)/python -m benchmarks.gpu --out runs/gpu \
	  --only environment contract equality bfloat16 scores curve contract-result $(ARGS)

docs: $(READY)
	@$(BIN)/python -m tests.cli.help_blocks docs/cli.md
	@$(BIN)/python -m tests.training.settings_table docs/training.md
	@$(BIN)/python -m tests.editors.editors_table README.md

readme: $(READY)
	@$(BIN)/python docs/refresh.py README.md
	@$(BIN)/python docs/refresh.py docs/tour.md
	@for page in index compare-editors train-an-editor write-an-editor; do $(BIN)/python docs/refresh.py docs/$$page.md || exit 1; done

# an environment of its own, on top of .venv; CONTRIBUTING.md says why
site: $(READY)
	@$(PYTHON) .ci/environment.py site
	@$(THREADS) .venv-site/bin/python .ci/site/notebooks.py check
	@NO_MKDOCS_2_WARNING=1 .venv-site/bin/python -m mkdocs build --strict --quiet
	@echo "  build/site/index.html"

notebooks: $(READY)
	@$(PYTHON) .ci/environment.py site
	@$(THREADS) .venv-site/bin/python .ci/site/notebooks.py write

results: $(READY)
	@$(BIN)/python -m studies.pocket page
	@$(BIN)/python -m studies.locate page
	@$(BIN)/python -m studies.table2 page
	@$(BIN)/python -m studies.real page
	@$(BIN)/python -m studies.sequences page
	@$(BIN)/python -m studies.lifelong page
	@$(BIN)/python -m studies.ibke page
	@$(BIN)/python -m studies.figures page

clean:
	@rm -rf .pytest_cache .ruff_cache .hypothesis dist build
	@find src tests benchmarks studies -name __pycache__ -type d -prune -exec rm -rf {} +
