.PHONY: demo test thorough lint docs package showcase
BIN := .venv/bin

$(BIN)/nas-kd: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

demo: $(BIN)/nas-kd   ## search, front, export and a picture there and back, on what is built in
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(BIN)/nas-kd   ## the default suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not thorough and not slow and not gpu and not network"

thorough: $(BIN)/nas-kd   ## the longer half of the tests, which `make test` leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "thorough and not slow and not gpu and not network"

lint: $(BIN)/nas-kd   ## style, types, and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(BIN)/nas-kd   ## the pages, in build/docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

package: $(BIN)/nas-kd   ## the wheel, in dist; installed into an empty environment and used there
	rm -rf dist build/alone
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/uv venv --quiet --python $(BIN)/python build/alone
	$(BIN)/uv pip install --quiet --python build/alone/bin/python -c constraints.txt dist/*.whl
	cd build/alone && bin/nas-kd eval mini
	ls -l dist

showcase: $(BIN)/nas-kd   ## the README's picture and table, after a change of weights
	OMP_NUM_THREADS=1 $(BIN)/python scripts/showcase.py
