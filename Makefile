# Every target does the whole set-up on a fresh machine; a second call does none of it.
PYTHON      ?= python3.11
VENV        ?= .venv
BIN         := $(VENV)/bin
# torch and torchvision, and nothing else, come from PyTorch's CPU index where that answers
# (labutils/machine/torch_index.py). TORCH_INDEX=URL names another one; TORCH_INDEX= (empty) means your default.
QNN         := onnxruntime-qnn==2.7.0
LITERT      := ai-edge-litert==2.3.0
UV          := $(shell command -v uv 2>/dev/null)
SETUP       := $(VENV)/.setup
STARTED     := $(shell date +%s)

# another environment, a user site or somebody's Jupyter configuration must not leak in
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV JUPYTER_PATH
# nor a wish for no byte code: a test run is some hundred processes, and each would compile the lab
unexport PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1

ifdef UV
# uv does not read pip's configuration: pass on the wheel folders that pip would look into
INSTALL := $(UV) pip install -q --python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS))
UNINSTALL := $(UV) pip uninstall -q --python $(BIN)/python
ONLY_INDEX := --default-index
else
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
UNINSTALL := $(BIN)/python -m pip uninstall -q -y --disable-pip-version-check
ONLY_INDEX := --index-url
endif
# make setup PACK=DIR: from a folder that `make pack DIR=...` filled, without any network
ifdef PACK
INSTALL += --no-index --find-links "$(PACK)/wheels"
endif

.DELETE_ON_ERROR: # an environment that was made by half would count as made
.PHONY: setup pack lab notebooks html html-tools test-tools run test test-notebooks test-without-qnn test-litert test-slow mutants lint benchmarks clean
setup: $(SETUP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed (PYTHON=python3.11 make setup), this is %d.%d" % v)'
	$(if $(UV),$(UV) venv -q -p $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(VENV)/.packages: requirements.txt constraints.txt | $(BIN)/python
ifdef PACK
	$(BIN)/python -m labutils unpack "$(PACK)"
else
	@index=$$($(BIN)/python -m labutils.machine.torch_index); test -z "$$index" || \
	  $(INSTALL) $(ONLY_INDEX) "$$index" --no-deps -c constraints.txt torch torchvision || \
	  echo "Note: the index of torch answers, but torch could not be installed from it; it comes from where all other packages do."
endif
	$(INSTALL) -c constraints.txt -r requirements.txt
	@touch $@

$(SETUP): $(VENV)/.packages pyproject.toml
	$(INSTALL) -c constraints.txt setuptools
	$(INSTALL) --no-deps --no-build-isolation -e .
	@$(INSTALL) -c constraints.txt $(QNN) || echo "Note: $(QNN) has no wheel for this machine (macOS, musl, glibc below 2.35): no DLC and no HTP simulator here; everything else works."
	@$(INSTALL) -c constraints.txt $(LITERT) || echo "Note: $(LITERT) has no wheel for this machine (musl, Linux on ARM): no .tflite runs here; everything else works."
	@# no question about news from the network when JupyterLab opens
	$(BIN)/python -m jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements 2>/dev/null
	@touch $@
	@s=$$(($$(date +%s) - $(STARTED))); echo "Set up in $$((s / 60)) min $$((s % 60)) s; $(VENV) takes $$(du -sh $(VENV) | cut -f1)."

# Wheels and weights in one folder, for a room without a network.
pack: setup
	@test -n "$(DIR)" || { echo "Pass the folder to fill: make pack DIR=/media/stick/lab"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m labutils pack "$(DIR)" --with $(QNN) --with $(LITERT)

# The learner works on copies in notebooks/my; JupyterLab listens on this machine only, with a token.
lab: setup
	$(BIN)/python -m labutils lab

# Run all notebooks; write back the outputs that they keep, and data/recorded/ (needs Qualcomm's wheel).
notebooks: setup
	$(BIN)/python -m labutils.lab.notebooks refresh

# The reader's edition: executed notebooks with solutions, as pages.
html: html-tools
	$(BIN)/python -m labutils.lab.book

html-tools test-tools: %: $(VENV)/.%
$(VENV)/.html-tools $(VENV)/.test-tools: $(VENV)/.%-tools: $(SETUP)
	$(INSTALL) -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@

run: setup
	$(BIN)/python -m labutils journey

# Three processes for two cores, because many tests wait for a child or a page. Each file's tests
# stay together and in order; the long files come first. The slowest are listed at the end.
TEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=120 --durations-min=4
LAB  := tests/notebooks tests/browser
test: test-tools
	$(TEST) $(addprefix --ignore=,$(LAB))

# Every notebook from top to bottom, JupyterLab in a browser, and the reader's edition.
test-notebooks: test-tools
	$(TEST) $(LAB)

# As on a machine for which Qualcomm publishes no wheel; it is installed again afterwards. Only the
# files that ask for it: tests/conftest.py sees to it that the others never do.
test-without-qnn: test-tools
	$(UNINSTALL) onnxruntime-qnn
	$(TEST) --asks-qnn; status=$$?; $(INSTALL) -c constraints.txt $(QNN); exit $$status

# Google's converter and Keras, each installed into a separate environment, and the tests that skip
# without them. Where they cannot be installed, these tests skip here as well.
test-litert: test-tools
	@for tool in litert keras; do $(BIN)/python -m labutils tools install $$tool || \
	  echo "Note: $$tool could not be installed: the tests that need it skip."; done
	$(TEST) tests/test_litert_conversion.py $(wildcard tests/test_representation*.py)

# Sweeps over many models and settings, which take minutes each.
test-slow: test-tools
	$(BIN)/python -m pytest -m sweep

# Do the tests notice a fault? 160 small ones, drawn by seed; about an hour of one core.
mutants: test-tools
	$(BIN)/python benchmarks/mutants.py

lint: test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: setup
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/simulator.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
