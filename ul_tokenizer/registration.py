"""Makes diffusers know our classes, so that its own `DiffusionPipeline.from_pretrained` loads our pipelines.

diffusers loads components only from libraries on a list of its own, and pipelines only by names of its own module
(diffusers#6563). `register_with_diffusers` adds us to both, without importing anything of ours; `import ul_tokenizer`
sees to it that this happens at once if diffusers was imported before, and else when it first is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

HOST_CLASSES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
"""Classes of diffusers that it looks for in our namespace, to learn how ours are loaded."""
OUR_CLASSES = ("UnifiedLatentsAutoencoder", "UnifiedLatentsTransformer", "LogSNRScheduler", "UnifiedLatentsPipeline")
_METHODS = ["save_pretrained", "from_pretrained"]


def register_with_diffusers() -> None:
    """Adds our classes to what diffusers can load; imports it if it isn't yet. Any number of calls is one."""
    import_module("diffusers")
    loading = import_module("diffusers.pipelines.pipeline_loading_utils")
    loading.LOADABLE_CLASSES.setdefault("ul_tokenizer", {name: list(_METHODS) for name in HOST_CLASSES})
    # Names found here come before the modules of a repository, which would need `trust_remote_code`.
    import_module("diffusers.pipelines").ul_tokenizer = sys.modules[__package__]  # type: ignore[attr-defined]
    _offer_our_names(sys.modules["diffusers"])


def _offer_our_names(diffusers: ModuleType) -> None:
    """Lets `diffusers.UnifiedLatentsPipeline` be ours; it is imported when it is first asked for."""
    host: Any = type(diffusers)
    if getattr(host, "_knows_ul_tokenizer", False):
        return

    class WithOurs(host):  # type: ignore[misc, unused-ignore]
        _knows_ul_tokenizer = True

        def __getattr__(self, name: str) -> Any:
            if name in OUR_CLASSES:
                return getattr(import_module("ul_tokenizer"), name)
            return super().__getattr__(name)

    diffusers.__class__ = WithOurs


def register_when_imported() -> None:
    """Registers now, or when diffusers is first imported."""
    if "diffusers" in sys.modules:
        register_with_diffusers()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Sees diffusers being imported, once, and registers when that is done."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give, with our call behind its execution; None for all other modules."""
        if name != "diffusers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_with_diffusers()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def our_class(name: str) -> Any:
    """Our class of this name in a saved config, imported if needed; None for any other name."""
    return getattr(import_module("ul_tokenizer"), name) if name in OUR_CLASSES else None
