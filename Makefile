# `make help` lists what can be made. Environments are folders here, installed once; `make clean` removes them.

SHELL := /bin/bash
PYTHON ?= python3
DEMO_ENV := .venv-demo
TEST_ENV := .venv-test
PHOTOS ?= $(HOME)/.cache/ul_tokenizer/debian-photos
CLIPS ?= $(HOME)/.cache/ul_tokenizer/clips
FASHION ?= $(HOME)/.cache/ul_tokenizer/fashion-mnist
EMOJI ?= $(HOME)/.cache/ul_tokenizer/emoji
PHOTO_CONFIGS := ul-photo-f8 ul-photo-f8-large-crops ul-photo-f8-prior
# Those that measure, and need no environment of their own.
NO_BENCHMARKS := benchmarks/draw_pictures.py benchmarks/quote_figures.py benchmarks/fidelity_check.py
BENCHMARKS ?= $(filter-out $(NO_BENCHMARKS),$(sort $(wildcard benchmarks/[a-z]*.py)))
RESULTS := benchmarks/results
CODECS := $(foreach codec,jpeg:10 jpeg:20 jpeg:30 jpeg:40 jpeg:60 webp:5 webp:10 webp:20 webp:40 webp:60 avif:20 avif:30 avif:40 avif:50 avif:60,--model $(codec))
EVALUATE = $(TEST_ENV)/bin/ul-tokenizer evaluate
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
TRAIN = $(TEST_ENV)/bin/accelerate launch --num_cpu_threads_per_process $(THREADS) -m ul_tokenizer.train
PYTEST_IN_PARALLEL := -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs docs-serve bench figures figures-fashion pictures notebooks dit photos pack-photos train-photo emoji fashion train-fashion clips train-video weights clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

demo: $(DEMO_ENV)/.installed ## put the bundled photos through the bundled autoencoder, offline; pictures in demo/
	HF_HUB_OFFLINE=1 $(DEMO_ENV)/bin/ul-tokenizer reconstruct examples/images -o demo --model ul-photo-f8 --force
	@printf '%s\n' '' 'The pictures, each original beside its reconstruction, are in $(CURDIR)/demo' 'Try next:' \
	  '  $(DEMO_ENV)/bin/ul-tokenizer reconstruct PHOTO.jpg -o out      # your own picture, or a folder' \
	  '  $(DEMO_ENV)/bin/ul-tokenizer generate --class sneaker -o grid.png' \
	  '  $(DEMO_ENV)/bin/ul-tokenizer --help'

test: $(TEST_ENV)/.installed ## run the tests that are not slow, a process per core; PYTEST="-k name" selects some
	$(TEST_ENV)/bin/python $(PYTEST_IN_PARALLEL) -m "not slow" $(PYTEST)

test-all: $(TEST_ENV)/.installed ## run all tests and print the coverage of each room
	$(TEST_ENV)/bin/python $(PYTEST_IN_PARALLEL) --cov --cov-report= $(PYTEST)

lint: $(TEST_ENV)/.installed ## ruff, the format and mypy, changing nothing
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy

format: $(TEST_ENV)/.installed ## format the code and apply ruff's safe fixes
	$(TEST_ENV)/bin/ruff check --fix-only .
	$(TEST_ENV)/bin/ruff format .

docs: $(TEST_ENV)/.installed ## check the spelling and build the site into site/; a broken link or an undocumented public name is an error
	$(TEST_ENV)/bin/codespell
	$(TEST_ENV)/bin/python -m mkdocs build --strict

docs-serve: $(TEST_ENV)/.installed ## show the site at http://127.0.0.1:8000 and build it again after each change
	$(TEST_ENV)/bin/python -m mkdocs serve

bench: $(TEST_ENV)/.installed ## print the figures that README and MODEL_CARD quote; BENCHMARKS=file for one
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(TEST_ENV)/bin/python $$script; done

figures: photos clips fashion ## measure the figures of the cards that aren't in benchmarks/results yet, and insert all that is quoted
	$(EVALUATE) reconstruction $(PHOTOS)/validation --resolution 320 --crop random --crop-size 128 -n 252 --mosaic \
	  --batch-size 42 --model ul-photo-f8 --steps 1,2,4,8 $(CODECS) -o $(RESULTS)/photos
	$(EVALUATE) reconstruction $(CLIPS)/validation --clip-frames 16 --resolution 96 --crop random --crop-size 96 \
	  --batch-size 4 --model ul-video --steps 1,2,4 -o $(RESULTS)/clips
	$(EVALUATE) reconstruction $(CLIPS)/validation --clip-frames 16 --resolution 96 --crop random --crop-size 96 \
	  --batch-size 4 --model ul-photo-f8 --steps 1 -o $(RESULTS)/clips
	$(EVALUATE) reconstruction examples/images --crop random --crop-size 128 -n 6 --features none --lpips none \
	  --model ul-photo-f8 --model jpeg:30 -o $(RESULTS)/demo
	$(EVALUATE) reconstruction $(FASHION)/test --resolution 32 -n 1000 --lpips none --model ul-fashion --steps 1,4 \
	  -o $(RESULTS)/fashion
	$(TEST_ENV)/bin/python benchmarks/bundled_models.py --output $(RESULTS)/models
	rm -rf $(RESULTS)/*/*.pictures # of photographs that we may not redistribute
	$(TEST_ENV)/bin/python benchmarks/quote_figures.py
	$(TEST_ENV)/bin/python conversion/model_card.py
	$(MAKE) pictures

pictures: $(TEST_ENV)/.installed ## draw the pictures of README and cards from the bundled weights and the measured figures
	HF_HUB_OFFLINE=1 $(TEST_ENV)/bin/python benchmarks/draw_pictures.py

figures-fashion: JUDGED = generation $(FASHION)/test --train $(FASHION)/train --model ul-fashion --features classifier:$(FASHION)/train,$(FASHION)/test -o $(RESULTS)/fashion-card
figures-fashion: fashion ## measure the card of ul-fashion anew, for an hour; run again, it goes on; then run `make figures`
	$(EVALUATE) $(JUDGED) -n 10000 --solver dpmsolver++ --guidance 2.5
	$(EVALUATE) $(JUDGED) -n 500 --solver ddim,dpmsolver++,ddpm --steps 4,8,16,32,64
	$(EVALUATE) $(JUDGED) -n 1000 --solver dpmsolver++ --guidance 1,1.5,2,3
	@set -e; for steps in 1 2 8; do $(EVALUATE) $(JUDGED) -n 1000 --solver dpmsolver++ --guidance 1.5 --decoder-steps $$steps; done
	$(EVALUATE) $(JUDGED) -n 1000 --solver dpmsolver++ --decode clean,scaled-clean
	$(EVALUATE) $(JUDGED) -n 1000 --solver dpmsolver++ --unconditional
	$(EVALUATE) $(JUDGED) -n 1000 --solver dpmsolver++ --unconditional --prior
	$(EVALUATE) reconstruction $(FASHION)/test --model ul-fashion --lpips none --features classifier:$(FASHION)/train,$(FASHION)/test -o $(RESULTS)/fashion-card
	$(TEST_ENV)/bin/python conversion/evaluation_rows.py $(RESULTS)/fashion-card ul-fashion

notebooks: $(TEST_ENV)/.installed ## execute the notebooks in place, after a change of code or weights; NOTEBOOKS=name.ipynb for one
	$(TEST_ENV)/bin/python examples/notebooks/execute.py $(NOTEBOOKS)

dit: fashion ## train the DiT example on the latents of Fashion-MNIST, and put its samples into the page on generators
	$(TEST_ENV)/bin/ul-tokenizer encode-dataset $(FASHION)/train -o runs/fashion-latents --model ul-fashion --resolution 32
	$(TEST_ENV)/bin/python examples/train_dit_on_latents.py runs/fashion-latents -o runs/dit --steps 600
	cp runs/dit/samples.png docs/how-to/dit-samples.png

photos: $(TEST_ENV)/.installed ## fetch the training photos from Debian packages into PHOTOS (Debian or Ubuntu only)
	$(TEST_ENV)/bin/python examples/data/debian_photos.py --cache $(PHOTOS)

pack-photos: photos ## pack the photos into photos.tar, about 42 MB, to be taken to a machine without Debian
	$(TEST_ENV)/bin/python examples/data/pack_photos.py $(PHOTOS) -o photos.tar

emoji: $(TEST_ENV)/.installed ## fetch 64x64 emoji of three vendors with captions from npm packages into EMOJI (needs npm)
	$(TEST_ENV)/bin/python examples/data/emoji.py --cache $(EMOJI)

train-photo: photos ## train ul-photo-f8 in the three phases of the bundled model, on more photos; run again, it resumes
	@set -e; for config in $(PHOTO_CONFIGS); do \
	  $(TRAIN) autoencoder --config $$config --train_data_dir $(PHOTOS)/train --validation_data_dir $(PHOTOS)/validation; \
	done

fashion: $(TEST_ENV)/.installed ## fetch Fashion-MNIST from a Debian package into FASHION (Debian or Ubuntu only)
	$(TEST_ENV)/bin/python examples/data/fashion_mnist.py --cache $(FASHION)

train-fashion: DATA = --train_data_dir $(FASHION)/train --validation_data_dir $(FASHION)/test
train-fashion: fashion ## train ul-fashion as it was trained, both stages, into runs/; run again, it resumes
	$(TRAIN) autoencoder --config ul-fashion $(DATA)
	$(TRAIN) base --config ul-fashion-base $(DATA)

clips: $(TEST_ENV)/.installed ## fetch the training clips from packages into CLIPS (Debian or Ubuntu only)
	$(TEST_ENV)/bin/python examples/data/debian_clips.py --cache $(CLIPS)

train-video: photos clips ## train ul-video as it was trained, in two phases, from ul-photo-f8; run again, it resumes
	test -d runs/video-start || $(TEST_ENV)/bin/python -m conversion.image_to_video ul-photo-f8 -o runs/video-start --decoder_num_layers 2
	@set -e; for config in ul-video ul-video-lower-rate; do \
	  $(TRAIN) autoencoder --config $$config --train_data_dir $(PHOTOS)/train --validation_data_dir $(PHOTOS)/validation \
	    --train_video_dir $(CLIPS)/train --validation_video_dir $(CLIPS)/validation; \
	done

weights: $(TEST_ENV)/.installed ## train all bundled weights in a queue, for hours; run again, it resumes; WEIGHTS="--status" tells how far it is
	$(TEST_ENV)/bin/python examples/train_weights.py $(WEIGHTS)

clean: ## remove the environments, caches and the demo's pictures; runs and photos stay
	rm -rf $(DEMO_ENV) $(TEST_ENV) demo site build *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A stamp is written last: an install that was cut off is done again, a finished one costs nothing.
$(DEMO_ENV)/.installed: EXTRAS :=
$(TEST_ENV)/.installed: EXTRAS := [test]
$(DEMO_ENV)/.installed $(TEST_ENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) -e '.$(EXTRAS)'
	@touch $@
