# One virtual environment for everything. Your own pip settings (mirror, proxy, cache) hold: nothing here names an index.
#   make book   make test   make check   make notebooks   make exercises   make lab   make links
#   make pdf   make serve   make clean

PYTHON ?= python3
PORT ?= 8000
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
HTML := _build/html

# Two stamps: what builds the book is installed, and everything is. A stamp's name is a checksum of what was asked for
# and of where it was installed: it goes out of date when the requirements change or the folder moves, and appears only
# after pip has finished.
KEY := $(shell { cat pyproject.toml $(CONSTRAINTS) tests/older.txt Makefile; pwd; } | cksum | cut -d' ' -f1)
BOOK := $(VENV)/.book-$(KEY)
ALL := $(VENV)/.installed-$(KEY)

.PHONY: help book test check notebooks exercises lab links pdf serve clean
.DEFAULT_GOAL := help

help:
	@echo "make book       set up .venv with what the book needs, and build it"
	@echo "make test       install the rest, and run everything that CI runs, with the time of each step"
	@echo "make check      the fast subset while you work (under two minutes)"
	@echo "make notebooks  run again the notebooks that are out of date, and store their outputs"
	@echo "make exercises  generate exercises/ from solutions/"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make links      ask every address outside of the book for an answer (needs the network)"
	@echo "make pdf        print one PDF for each lecture from the built book (needs Chromium)"
	@echo "make serve      serve the built book on localhost:$(PORT)"
	@echo "make clean      remove what was built (not .venv)"

$(BOOK):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "       Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -f $(VENV)/.book-* $(VENV)/.installed-*
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[book]"
	@touch $@

$(ALL): $(BOOK)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[test]"
	@rm -rf $(VENV)/older
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/older -r tests/older.txt
	@touch $@

book: $(BOOK)
	$(BIN)/python tools/build_book.py --keep
	@echo
	@echo "The book is at $(HTML)/index.html: open it in a browser,"
	@echo "or run 'make serve' and go to http://localhost:$(PORT)"

test: $(ALL)
	$(BIN)/python tools/run_tests.py

check: $(ALL)
	$(BIN)/python tools/run_tests.py --fast

notebooks: $(ALL)
	$(BIN)/python tools/notebooks.py run

exercises: $(ALL)
	$(BIN)/python -m mlcomp.grading generate

lab: $(ALL)
	$(BIN)/jupyter lab lectures

links: $(BOOK)
	$(BIN)/jupyter-book build . --builder linkcheck --path-output _build/links

pdf: $(ALL)
	@test -f $(HTML)/index.html || $(MAKE) book
	$(BIN)/python tools/print_book.py $(HTML)

serve: $(BOOK)
	@test -f $(HTML)/index.html || $(MAKE) book
	@echo "http://localhost:$(PORT)  (Ctrl-C stops it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(HTML)

clean:
	rm -rf _build build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
