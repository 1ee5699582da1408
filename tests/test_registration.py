"""diffusers loads our pipelines by itself, in whichever order the two are imported, offline."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of fresh networks."""
    path = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    base = build_base("ul-base-tiny", {"sample_size": 2, "num_class_embeds": 3})
    UnifiedLatentsPipeline(base, LogSNRScheduler(), build_autoencoder("ul-tiny-f8")).save_pretrained(path)
    return path


def python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is ul_tokenizer.UnifiedLatentsPipeline, type(pipeline)
    assert type(pipeline.vae) is ul_tokenizer.UnifiedLatentsAutoencoder
    print(len(pipeline(class_labels=[0, 1], num_inference_steps=2).images))
"""


@pytest.mark.parametrize("imports", ["import diffusers, ul_tokenizer", "import ul_tokenizer, diffusers"])
def test_diffusers_loads_our_pipeline_whichever_is_imported_first(imports: str, folder: Path) -> None:
    assert python(f"    import sys\n    {imports}\n{LOAD}", str(folder)).strip() == "2"


def test_diffusers_saves_our_pipeline_under_the_name_of_our_library(folder: Path) -> None:
    index = (folder / "model_index.json").read_text()
    for name in ("UnifiedLatentsTransformer", "LogSNRScheduler", "UnifiedLatentsAutoencoder"):
        assert f'"ul_tokenizer",\n    "{name}"' in index


def test_our_names_are_on_diffusers_and_unknown_ones_are_not() -> None:
    out = python("""
        import ul_tokenizer, diffusers
        print(diffusers.UnifiedLatentsPipeline is ul_tokenizer.UnifiedLatentsPipeline)
        print(hasattr(diffusers, "UnifiedLatentsNonsense"), hasattr(diffusers, "AutoencoderKL"))
    """)
    assert out.split() == ["True", "False", "True"]


def test_registering_twice_is_registering_once() -> None:
    out = python("""
        import ul_tokenizer, diffusers
        from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
        kind, entry = type(diffusers), LOADABLE_CLASSES["ul_tokenizer"]
        ul_tokenizer.register_with_diffusers()
        print(type(diffusers) is kind, LOADABLE_CLASSES["ul_tokenizer"] is entry)
    """)
    assert out.split() == ["True", "True"]


def test_the_import_of_diffusers_brings_in_none_of_our_networks() -> None:
    out = python("""
        import sys, ul_tokenizer, diffusers
        print([name for name in sys.modules if name.startswith("ul_tokenizer.models")])
    """)
    assert out.strip() == "[]"


def test_a_missing_diffusers_is_still_a_missing_diffusers() -> None:
    out = python("""
        import sys, ul_tokenizer
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name == "diffusers":
                    raise ModuleNotFoundError("No module named 'diffusers'", name=name)
        sys.meta_path.insert(1, Hidden())
        try:
            import diffusers
        except ModuleNotFoundError as error:
            print(error.name)
    """)
    assert out.strip() == "diffusers"
