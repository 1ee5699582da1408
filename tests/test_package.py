"""The package from outside: what importing it costs, which names it offers, and what it needs installed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ul_tokenizer

PACKAGE = Path(ul_tokenizer.__file__).parent

# Hides the extras the way an environment without them does: no finder knows them.
HIDE_EXTRAS = """
import sys

class WithoutExtras:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"datasets", "gradio", "matplotlib", "webdataset", "tensorboard", "ray"}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(WithoutExtras, sys.meta_path)
"""


def module_names() -> list[str]:
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)


def test_importing_the_package_takes_under_a_second_and_touches_neither_torch_nor_diffusers() -> None:
    result = python("""
        import sys, time
        start = time.perf_counter()
        import ul_tokenizer
        seconds = time.perf_counter() - start
        print(seconds, *({"torch", "diffusers", "accelerate", "numpy", "PIL", "av"} & set(sys.modules)))
    """)
    assert result.returncode == 0, result.stderr
    seconds, *heavy = result.stdout.split()
    assert heavy == []
    assert float(seconds) < 1.0


def test_listing_the_names_imports_nothing_heavy() -> None:
    result = python("import sys, ul_tokenizer; dir(ul_tokenizer); sys.exit('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", [name for name in ul_tokenizer.__all__ if name != "__version__"])
def test_a_public_name_resolves_to_what_its_home_module_defines(name: str) -> None:
    value = getattr(ul_tokenizer, name)
    assert value.__name__ == name
    assert value.__module__.startswith("ul_tokenizer.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_a_name_once_resolved_stays_in_the_module() -> None:
    first = ul_tokenizer.LogSNRScheduler
    assert vars(ul_tokenizer)["LogSNRScheduler"] is first


HEAVY = (
    *("av", "datasets", "matplotlib", "onnx", "pandas", "pyarrow", "scipy.stats", "tensorboard", "webdataset"),
    *("diffusers.loaders.peft", "diffusers.models.autoencoders", "diffusers.models.unets", "diffusers.pipelines"),
    *("transformers.modeling_utils", "transformers.models.auto"),
)


def test_loading_a_model_imports_neither_transformers_nor_the_pipelines_of_diffusers() -> None:
    result = python(
        """
        import sys, ul_tokenizer
        ul_tokenizer.LogSNRScheduler()
        ul_tokenizer.UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8")
        ul_tokenizer.UnifiedLatentsTransformer.from_pretrained("ul-photo-f8", subfolder="prior")
        print(*set(sys.argv[1:]) & set(sys.modules))
        """,
        *HEAVY,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_a_latent_data_set_needs_no_diffusers_and_an_error_of_the_hub_no_torch() -> None:
    result = python("""
        import sys, ul_tokenizer
        ul_tokenizer.HubError
        print("torch" in sys.modules)
        ul_tokenizer.LatentDataset, ul_tokenizer.LatentWriter
        print("diffusers" in sys.modules)
    """)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_an_unknown_attribute_raises_attribute_error_with_the_name() -> None:
    with pytest.raises(AttributeError, match=r"'ul_tokenizer' has no attribute 'UnifiedLatent'"):
        _ = ul_tokenizer.UnifiedLatent


def test_all_holds_exactly_the_lazy_names_the_version_and_the_registration() -> None:
    assert set(ul_tokenizer.__all__) == {*ul_tokenizer._HOMES, "__version__", "register_with_diffusers"}
    assert set(ul_tokenizer.__all__) <= set(dir(ul_tokenizer))


def test_a_star_import_gives_every_public_name() -> None:
    result = python("""
        import ul_tokenizer
        from ul_tokenizer import *
        print(*sorted(name for name in ul_tokenizer.__all__ if name in globals()))
    """)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == sorted(ul_tokenizer.__all__)


def test_every_module_imports_without_any_extra_installed() -> None:
    script = HIDE_EXTRAS + "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = module_names()
    assert "ul_tokenizer.diffusion.schedule" in names  # or nothing was looked at
    result = python(script, *names)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("extra", ["tensorboard", "datasets", "torch.utils.tensorboard"])
def test_the_hidden_extras_are_really_hidden(extra: str) -> None:
    result = python(HIDE_EXTRAS + f"import {extra}")
    assert "ModuleNotFoundError" in result.stderr


def test_type_checkers_find_the_marker_in_the_package() -> None:
    assert (PACKAGE / "py.typed").is_file()
