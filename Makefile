# `make demo` and `make test` need Python 3.11 and gcc, nothing else; each makes .venv when it is missing.
#
# torch: the CPU build. Where pip's default index would give a CUDA build, name PyTorch's CPU index:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready

.PHONY: venv demo tools test soak lint kernels-bench clean

$(READY): requirements/cpu.txt requirements/vllm-name/pyproject.toml pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); give one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned CPU stack (about 2 GB) ..."
	$(PIP) install --no-deps --progress-bar on $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/cpu.txt
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' 2>/dev/null || { rm -rf $(VENV); \
		echo "pip chose a build of torch for CUDA; again with TORCH_INDEX=https://download.pytorch.org/whl/cpu $(MAKECMDGOALS)"; exit 2; }
	$(PIP) install --no-deps --no-build-isolation ./requirements/vllm-name
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

venv: $(READY)  ## install everything into .venv

demo: $(READY)  ## serve the bundled target with and without the drafter, and show the difference
	$(BIN)/vllm-edsd demo

tools:  ## Prometheus from Debian, as root, where it is missing; without it the tests of its rules are skipped
	@command -v promtool >/dev/null || { apt-get update && apt-get install -y --no-install-recommends prometheus; }

test: $(READY)  ## every test, through a real server too
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not roomy" tests/e2e tests/integration
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "roomy or not e2e" tests/e2e tests/unit tests/property

soak: $(READY)  ## 15 minutes of good, bad and broken-off requests to a real server; MINUTES and JSON change that
	$(BIN)/python benchmarks/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JSON),--json $(JSON))

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels-bench:  ## time the kernels; PYTHON is one with vllm_edsd and a CUDA build of torch (.venv has the CPU build)
	@$(PYTHON) -c 'import torch, triton, vllm_edsd' || \
		{ echo "a GPU, a CUDA build of torch, triton and vllm_edsd are needed; name a Python that has them: make PYTHON=... $@"; exit 2; }
	$(PYTHON) benchmarks/kernels.py $(if $(JSON),--json $(JSON))

clean:  ## remove the environment and caches
	rm -rf $(VENV) .cache build *.egg-info requirements/vllm-name/build requirements/vllm-name/*.egg-info
