# Every target does the whole set-up on a fresh machine; a second call does none of it.
PYTHON      ?= python3.11
VENV        ?= .venv
BIN         := $(VENV)/bin
# PyPI's Linux torch is the CUDA build. This index has the CPU build; set TORCH_INDEX= (empty) where
# your own index or wheel folder has a torch that suits the machine, and on macOS.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
QNN         := onnxruntime-qnn==2.7.0
UV          := $(shell command -v uv 2>/dev/null)
SETUP       := $(VENV)/.setup

# another environment, a user site or somebody's Jupyter configuration must not leak in
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV JUPYTER_PATH
export PYTHONNOUSERSITE := 1

ifdef UV
# uv does not read pip's configuration: pass on the wheel folders that pip would look into
INSTALL := $(UV) pip install -q --python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS))
UNINSTALL := $(UV) pip uninstall -q --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
UNINSTALL := $(BIN)/python -m pip uninstall -q -y --disable-pip-version-check
endif
# make setup PACK=DIR: from a folder that `make pack DIR=...` filled, without any network
ifdef PACK
override TORCH_INDEX :=
INSTALL += --no-index --find-links $(abspath $(PACK))/wheels
endif
EXTRA   := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
           $(if $(UV),$(if $(TORCH_INDEX),--index-strategy unsafe-best-match))

.PHONY: setup pack lab notebooks html html-tools run test test-without-qnn test-slow mutants lint benchmarks clean
setup: $(SETUP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed (PYTHON=python3.11 make setup), this is %d.%d" % v)'
	$(if $(UV),$(UV) venv -q -p $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(SETUP): requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	$(if $(PACK),$(BIN)/python -m labutils unpack $(abspath $(PACK)))
	$(INSTALL) $(EXTRA) -c constraints.txt -r requirements.txt
	$(INSTALL) -c constraints.txt setuptools
	$(INSTALL) --no-deps --no-build-isolation -e .
	@$(INSTALL) -c constraints.txt $(QNN) || echo "Note: $(QNN) has no wheel for this machine (macOS, musl, glibc below 2.35): no DLC and no HTP simulator here; everything else works."
	@# no question about news from the network when JupyterLab opens
	$(BIN)/python -m jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements 2>/dev/null
	@touch $@

# Wheels and weights in one folder, for a room without a network.
pack: setup
	@test -n "$(DIR)" || { echo "Say where to: make pack DIR=/media/stick/lab"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m labutils pack "$(DIR)" --with $(QNN) --index "$(TORCH_INDEX)"

# The learner works on copies in notebooks/my; JupyterLab listens on this machine only, with a token.
lab: setup
	$(BIN)/python -m labutils.notebooks checkout
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) \
	  --ServerApp.root_dir=. --ServerApp.preferred_dir=notebooks/my notebooks/my/00_start_here.ipynb

# Run all notebooks; write back the outputs that they keep, and data/recorded/ (needs Qualcomm's wheel).
notebooks: setup
	$(BIN)/python -m labutils.notebooks refresh

# The reader's edition: executed notebooks with solutions, as pages.
html: html-tools
	$(BIN)/python -m labutils.book

html-tools: setup
	$(INSTALL) $(EXTRA) -c constraints.txt --no-build-isolation -e '.[html]'

run: setup
	$(BIN)/python -m labutils journey

# Two processes; each file's tests stay together and in order. The long files come first.
TEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: setup
	$(TEST)

# The same as on a machine for which Qualcomm publishes no wheel; it is installed again afterwards.
test-without-qnn: setup
	$(UNINSTALL) onnxruntime-qnn
	$(TEST); status=$$?; $(INSTALL) -c constraints.txt $(QNN); exit $$status

# Sweeps over many models and settings, which take minutes each.
test-slow: setup
	$(BIN)/python -m pytest -m sweep

# Do the tests notice a fault? 160 small ones, drawn by seed; about an hour of one core.
mutants: setup
	$(BIN)/python benchmarks/mutants.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmarks: setup
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/simulator.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
