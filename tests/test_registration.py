"""diffusers loads our models by itself, in whichever order the two are imported, offline."""

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


def python(code: str, *arguments: object, cwd: Path | None = None) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- in which order

LOAD = """
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is ul_tokenizer.UnifiedLatentsPipeline, type(pipeline)
    assert type(pipeline.vae) is ul_tokenizer.UnifiedLatentsAutoencoder
    assert diffusers.UnifiedLatentsPipeline is ul_tokenizer.UnifiedLatentsPipeline
    print(len(pipeline(class_labels=[0, 1], num_inference_steps=2).images))
"""
ORDERS = {
    "diffusers first": "import diffusers, ul_tokenizer",
    "ours first": "import ul_tokenizer, diffusers",
    "diffusers.pipelines first": "import diffusers.pipelines.pipeline_utils, diffusers, ul_tokenizer",
    "after find_spec": (
        "import ul_tokenizer; from importlib.util import find_spec; "
        "assert [find_spec('diffusers').name for _ in range(3)] == ['diffusers'] * 3; "
        "import diffusers; "
        "assert find_spec('diffusers.pipelines.pipeline_loading_utils') and find_spec('diffusers.models.auto_model')"
    ),
    "after reload": (
        "import ul_tokenizer, diffusers, importlib; importlib.reload(diffusers); import diffusers; "
        "from diffusers.pipelines import pipeline_loading_utils as utils; importlib.reload(utils); "
        "assert 'ul_tokenizer' in utils.LOADABLE_CLASSES; importlib.reload(ul_tokenizer.registration)"
    ),
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_diffusers_loads_our_pipeline_whichever_is_imported_first(imports: str, folder: Path) -> None:
    assert python(f"    import sys\n    {imports}\n{LOAD}", folder).strip() == "2"


def test_a_finder_of_somebody_else_still_finds_diffusers_and_its_resources() -> None:
    out = python("""
        import sys, ul_tokenizer
        asked = []
        class Watching:
            def find_spec(self, name, path=None, target=None):
                asked.append(name)
        sys.meta_path.insert(1, Watching())
        import diffusers, importlib.resources, inspect
        print("diffusers" in asked, importlib.resources.files("diffusers").joinpath("__init__.py").is_file())
        import diffusers.pipelines.pipeline_loading_utils as utils
        print("LOADABLE_CLASSES" in inspect.getsource(utils))
    """)
    assert out.split() == ["True", "True", "True"]


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


# ---------------------------------------------------------------- what is registered


def test_diffusers_saves_our_pipeline_under_the_name_of_our_library(folder: Path) -> None:
    index = (folder / "model_index.json").read_text()
    for name in ("UnifiedLatentsTransformer", "LogSNRScheduler", "UnifiedLatentsAutoencoder"):
        assert f'"ul_tokenizer",\n    "{name}"' in index


def test_registering_twice_is_registering_once_and_unknown_names_stay_unknown() -> None:
    out = python("""
        import sys, ul_tokenizer, diffusers
        from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
        load = diffusers.DiffusionPipeline.from_pretrained.__func__
        kind, entry, finders = type(diffusers), LOADABLE_CLASSES["ul_tokenizer"], len(sys.meta_path)
        ul_tokenizer.register_with_diffusers()
        print(type(diffusers) is kind, LOADABLE_CLASSES["ul_tokenizer"] is entry, len(sys.meta_path) == finders)
        print(diffusers.DiffusionPipeline.from_pretrained.__func__ is load)
        print(hasattr(diffusers, "UnifiedLatentsNonsense"), hasattr(diffusers, "AutoencoderKL"))
    """)
    assert out.split() == ["True", "True", "True", "True", "False", "True"]


def test_registering_imports_neither_our_networks_nor_the_pipelines_of_diffusers() -> None:
    out = python("""
        import sys, ul_tokenizer, diffusers.models.modeling_utils
        ours = [name for name in sys.modules if name.startswith("ul_tokenizer.models")]
        print(ours, "diffusers.pipelines" in sys.modules, "transformers.modeling_utils" in sys.modules)
    """)
    assert out.strip() == "[] False False"


# ---------------------------------------------------------------- bundled names


def test_diffusers_loads_bundled_models_by_their_names() -> None:
    out = python("""
        import ul_tokenizer
        from diffusers import AutoModel, DiffusionPipeline
        pipeline = DiffusionPipeline.from_pretrained("ul-fashion")
        ours = ul_tokenizer.UnifiedLatentsPipeline.from_pretrained("ul-fashion")
        for name in ("vae", "transformer"):
            theirs = getattr(pipeline, name).state_dict()
            assert all(weight.equal(theirs[key]) for key, weight in getattr(ours, name).state_dict().items())
        print(type(pipeline).__name__, type(AutoModel.from_pretrained("ul-photo-f8")).__name__)
        print(type(AutoModel.from_pretrained("ul-fashion", subfolder="transformer")).__name__)
        print(type(DiffusionPipeline.from_pretrained(pretrained_model_name_or_path="ul-fashion")).__name__)
    """)
    assert out.split() == [
        "UnifiedLatentsPipeline",
        "UnifiedLatentsAutoencoder",
        "UnifiedLatentsTransformer",
        "UnifiedLatentsPipeline",
    ]


def test_a_local_folder_and_other_names_go_through_diffusers_unchanged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ul-fashion").symlink_to(folder)
    out = python(
        """
        import ul_tokenizer
        from diffusers import DiffusionPipeline
        print(DiffusionPipeline.from_pretrained("ul-fashion").transformer.config.num_class_embeds)
        try:
            DiffusionPipeline.from_pretrained("nobody/nothing", local_files_only=True)
        except Exception as error:
            print(isinstance(error, OSError))
        print(DiffusionPipeline.from_pretrained.__doc__[:40].split()[0], DiffusionPipeline.from_pretrained.__name__)
    """,
        cwd=tmp_path,
    )
    assert out.split() == ["3", "True", "Instantiate", "from_pretrained"]
