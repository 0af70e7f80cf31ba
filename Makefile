# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything but the peers that benchmarks compare with.
EXTRAS := cpu,serve,report,scale,hub,export,heif,test

.PHONY: demo test lint setup docs bench bench-training bench-loader bench-stochastic-depth bench-overfitting bench-files bench-inference bench-training-step bench-layers bench-checkpoints bench-manifest bench-parity bench-weights-loading bench-transfer bench-time-to-accuracy bench-faults clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/resnext demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two files at a time, each by a process of its own.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Long measurements; each prints a table. RESNEXT_CIFAR10 names an unpacked CIFAR-10 or the zip of it.
bench: bench-training bench-training-step bench-loader bench-stochastic-depth bench-inference bench-layers bench-files bench-manifest bench-overfitting

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),bench]'
	touch $@

bench-training: $(VENV)/.bench
	$(BIN)/python benchmarks/training.py

bench-loader: $(VENV)/.bench
	$(BIN)/python benchmarks/loader.py

bench-stochastic-depth: setup
	$(BIN)/python benchmarks/stochastic_depth.py

bench-inference: $(VENV)/.bench
	$(BIN)/python benchmarks/inference.py

bench-layers: setup
	$(BIN)/python benchmarks/layers.py

bench-training-step: setup
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/training_step.py --network cifar_resnext20_8x8d --image-size 32 --batch-size 128

bench-files: setup
	$(BIN)/python benchmarks/files.py

bench-checkpoints: setup
	$(BIN)/python benchmarks/checkpoints.py

# Writes a million files, about 4 GB, for as long as it takes.
bench-manifest: setup
	$(BIN)/python benchmarks/manifest.py

# Hours, in pieces: it goes on with what DIR holds. `make bench-time-to-accuracy STATE=DIR MINUTES=N`
STATE ?= runs/time-to-accuracy
MINUTES ?= inf
bench-time-to-accuracy: $(VENV)/.bench
	$(BIN)/python benchmarks/time_to_accuracy.py --state $(STATE) --minutes $(MINUTES)

# Not a timing: weights of every network of torchvision's and timm's that is also here, and their logits on photos.
bench-parity: setup
	$(BIN)/python benchmarks/parity.py

bench-weights-loading: setup
	$(BIN)/python benchmarks/weights_loading.py

bench-transfer: setup
	$(BIN)/python benchmarks/transfer.py

# Not a timing: every family learns 32 images by heart, the slow ones too.
bench-overfitting: setup
	$(BIN)/python -m pytest tests/test_overfitting.py -m "slow or not slow"

# Not a timing either: runs that are killed, cut off, lied to and damaged, and bugs that must be noticed; an hour or so.
bench-faults: setup
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python -m pytest tests/training tests/benchmarking -m slow

# docs/networks.md and its drawings, from the networks themselves.
docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist
