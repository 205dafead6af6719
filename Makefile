# Each target does all its own set-up; scripts/common.sh is how.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo lab test bench lint docs widgets clean

help: ## show this list
	@sed -nE 's/^([a-z]+): ## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r name what; do printf 'make %-8s %s\n' "$$name" "$$what"; done

demo: ## run a notebook's job on local workers, live in the terminal, without any server
	@. scripts/common.sh; install .venv demo; exec python notebooks/in_terminal.py notebooks/01_first_tasks.ipynb

lab: ## open the notebooks in JupyterLab
	@. scripts/common.sh; install .venv lab; exec jupyter lab $$(is_root && echo --allow-root) notebooks

test: ## run every check and every test; brings the servers and the browser it needs
	@exec bash scripts/test.sh

bench: ## measure qnb beside Celery, dramatiq, Huey and ProcessPoolExecutor (ARGS=... go to tests.bench)
	@exec bash scripts/bench.sh $(ARGS)

lint: ## ruff, mypy --strict, and the type check and tests of the widgets
	@. scripts/common.sh; install .venv dev; bring_node .venv test; ruff check; mypy; python scripts/widgets.py test

docs: ## build the documentation into build/docs, without network once it is installed
	@. scripts/common.sh; install .venv docs; NO_MKDOCS_2_WARNING=1 mkdocs build --strict; echo "file://$$PWD/build/docs/index.html"

widgets: ## build the widgets' bundles from widgets/src
	@. scripts/common.sh; make_environment .venv; build_widgets .venv; ls -l qnb/notebook/static

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-bench .cache build dist qnb/notebook/static widgets/.built widgets/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
