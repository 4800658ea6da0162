# MiniSora. `make` alone lists what there is; every target sets up .venv by itself.

PYTHON ?= python3
BIN    := .venv/bin
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help video story test lint lab docs site-check readme export clean distclean

# The words a user gives reach the commands through the environment, untouched: spaces, quotes and $ are safe.
PROMPT ?=
IMAGE  ?=
DATA   ?=
OUT    ?=
ARGS   ?=
STEPS  ?=
SIZE   ?=
FPS    ?=
MINUTES ?=
SCRIPT ?=
override PROMPT := $(value PROMPT)
override IMAGE  := $(value IMAGE)
override DATA   := $(value DATA)
override OUT    := $(value OUT)
override STEPS  := $(value STEPS)
override SIZE   := $(value SIZE)
override FPS    := $(value FPS)
override MINUTES := $(value MINUTES)
override SCRIPT := $(value SCRIPT)
export PROMPT IMAGE DATA OUT STEPS SIZE FPS MINUTES SCRIPT

help:  ## list the commands
	@echo "MiniSora: text to video on your own computer. Commands:"; echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r a b; do printf '%-18s%s\n' "$$a" "$$b"; done
	@echo; echo '  make video PROMPT="a red ring moves left"   asks for a clip; what is trained already is reused'
	@echo '  make video DATA=folder-of-clips             the same on your own videos'
	@echo '  make video IMAGE=picture.png PROMPT="…"     a clip that begins with a picture; trains nothing'
	@echo '  make video SIZE=256                         the clip once more, 256 (or 128) pixels high'
	@echo '  make video MINUTES=5                        trains about so long (or STEPS=, FPS=8; with DATA= SIZE=96x160)'

video: .venv/.ready  ## train a small model from zero and make a video (PROMPT="...", IMAGE=file, SIZE=256, DATA=folder, OUT=folder, MINUTES=n)
	@out="$$OUT"; if [ -z "$$out" ]; then out=runs/first-video; \
	  if [ -n "$$DATA" ]; then out="runs/$$(basename "$$(cd "$$DATA" 2>/dev/null && pwd || echo "$$DATA")")"; fi; fi; \
	more=(); [ -z "$$MINUTES" ] || more+=(--minutes="$$MINUTES"); \
	[ -z "$$STEPS" ] || more+=(--set "steps=$$STEPS"); [ -z "$$IMAGE" ] || more+=(--image="$$IMAGE"); \
	if [ -n "$$IMAGE" ] || { [ -z "$$DATA" ] && [[ "$$SIZE" =~ ^(128|256)$$ ]]; }; then \
	  [ -z "$$SIZE" ] || more+=(--size="$$SIZE"); \
	elif [ -n "$$SIZE" ]; then more+=(--set "size=$$SIZE"); fi; \
	[ -z "$$FPS" ] || more+=(--set "fps=$$FPS"); \
	exec $(BIN)/minisora video --prompt="$$PROMPT" --data="$$DATA" --out="$$out" "$${more[@]}"

story: .venv/.story  ## make a narrated film of a text (SCRIPT=file.md or SCRIPT="a text", OUT=film.mp4, ARGS="--help")
	@[ -n "$$SCRIPT" ] || { echo 'Which text? make story SCRIPT=file.md, or SCRIPT="a text"'; exit 1; }; \
	exec $(BIN)/minisora story --out="$${OUT:-film.mp4}" $(ARGS) -- "$$SCRIPT"

test: .venv/.ready  ## run every notebook, the checks, the linter and the tests (under 25 minutes on 2 cores)
	@export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1; failed=; \
	$(BIN)/ruff check --quiet . || failed="style"; \
	echo "Running every notebook, two at a time ..."; \
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --timing || failed="$$failed notebooks"; \
	FAILED_BEFORE="$$failed" $(BIN)/python -m pytest -q tests

lint: .venv/.ready  ## check the style only, in seconds
	@$(BIN)/ruff check .

lab: .venv/.ready  ## open the lessons in Jupyter Lab (ARGS="--no-browser --ip=0.0.0.0" is passed on)
	@exec $(BIN)/jupyter lab $(ARGS) nbs/index.ipynb

export: .venv/.ready  ## write the modules from the notebooks and clean the notebooks
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

docs: .venv/.ready  ## render the lessons as a web site in _docs/ (Quarto where installed, smalldocs otherwise)
	@$(BIN)/python tools/docs.py

site-check: .venv/.ready  ## open every page of the site in Chromium and say what is wrong (ARGS="03_dit.html")
	@$(BIN)/python tools/check_site.py $(ARGS)

readme: .venv/.ready  ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

clean:  ## remove build outputs and caches (keeps .venv, data/ and runs/)
	@rm -rf _proc _docs build dist *.egg-info .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf

distclean: clean  ## clean, and remove .venv and node_modules too
	@rm -rf .venv node_modules

# Voices for `make story`; without them it would speak by a synthesizer of the machine, or not at all.
.venv/.story: .venv/.ready
	@echo "Installing voices (once; 120 MB) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[story]' || \
	  { echo "Could not install the voices (see above). Run make again."; exit 1; }
	@touch $@

# One environment for everything. The stamp is written last, so an interrupted installation starts again.
.venv/.ready: constraints.txt settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "MiniSora needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@rm -f $@; echo "Setting up .venv with PyTorch and the rest (once; a few minutes and 2 GB, more where PyTorch brings CUDA) ..."
	@{ test -e $(BIN)/activate && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
	  { echo "Could not create .venv. On Debian or Ubuntu: apt install python3-venv. Then run make again."; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]' || \
	  { echo "Could not install the packages (see above). Nothing is lost: run make again."; exit 1; }
	@touch $@
