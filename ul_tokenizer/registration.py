"""Makes diffusers know our classes, so that its own `DiffusionPipeline` and `AutoModel` load our models.

diffusers loads components only from the libraries on its own list, and pipelines only under the names of its own module
(diffusers#6563). Registration adds us to both. It also lets the two classes accept the names of bundled models.

Each entry of `_REGISTRATIONS` belongs to one module of diffusers and runs when that module has been imported, or at
once if it was imported before us. Registration itself imports nothing: `import ul_tokenizer` must stay quick, and
`diffusers.pipelines` would import most of transformers, which an autoencoder does not need.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ul_tokenizer import _compat
from ul_tokenizer.pretrained import bundled_names, bundled_path

HOST_CLASSES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
"""Classes of diffusers that it looks for in our namespace, to learn how ours are loaded."""
OUR_CLASSES = ("UnifiedLatentsAutoencoder", "UnifiedLatentsTransformer", "LogSNRScheduler", "UnifiedLatentsPipeline")
_METHODS = ["save_pretrained", "from_pretrained"]


def register_with_diffusers() -> None:
    """Registers our classes with diffusers, whether it is imported already or later.

    `import ul_tokenizer` does this. Further calls change nothing.
    """
    if not any(map(_is_ours, sys.meta_path)):
        sys.meta_path.insert(0, _RegisteringFinder())
    _register_imported()


def _register_imported() -> None:
    for name, register in _REGISTRATIONS.items():
        if name in sys.modules:
            register(sys.modules[name])


# ---------------------------------------------------------------- what is registered


def _offer_our_names(diffusers: ModuleType) -> None:
    """Makes `diffusers.UnifiedLatentsPipeline` and the like work; each class is imported at its first use."""
    host: Any = type(diffusers)
    if getattr(host, "knows_ul_tokenizer", False):
        return

    class WithOurs(host):  # type: ignore[misc, unused-ignore]
        knows_ul_tokenizer = True

        def __getattr__(self, name: str) -> Any:
            if name in OUR_CLASSES:
                return getattr(import_module("ul_tokenizer"), name)
            if hasattr(host, "__getattr__"):
                return super().__getattr__(name)
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    diffusers.__class__ = WithOurs


def _offer_our_package(pipelines: ModuleType) -> None:
    """Names found here come before the modules of a repository, which would need `trust_remote_code`."""
    pipelines.ul_tokenizer = sys.modules[__package__]  # type: ignore[attr-defined]


def _list_our_library(loading: ModuleType) -> None:
    loadable = _compat.loadable_classes(loading)
    if loadable is not None:
        loadable.setdefault("ul_tokenizer", {name: list(_METHODS) for name in HOST_CLASSES})


def _accept_bundled_names(class_name: str, module: ModuleType) -> None:
    """Makes `from_pretrained` of one of diffusers' classes load the folder of a bundled model by its name.

    This wraps a public method of diffusers, because it offers no hook for resolving names. All other names, and local
    folders with the name of a bundled model, go through unchanged.
    """
    host = getattr(module, class_name, None)
    if host is None or hasattr(host.from_pretrained, "accepts_bundled_names"):
        return
    load = host.from_pretrained.__func__

    @functools.wraps(load)
    def from_pretrained(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        args = tuple(_resolved(value) if i == 0 else value for i, value in enumerate(args))
        kwargs = {key: _resolved(value) if key in _NAME_ARGUMENTS else value for key, value in kwargs.items()}
        return load(cls, *args, **kwargs)

    from_pretrained.accepts_bundled_names = True  # type: ignore[attr-defined]
    host.from_pretrained = classmethod(from_pretrained)


_NAME_ARGUMENTS = ("pretrained_model_name_or_path", "pretrained_model_or_path")


def _resolved(name: Any) -> Any:
    """The folder of a bundled model; any other name as it is."""
    if isinstance(name, str) and name in bundled_names() and not os.path.isdir(name):
        return str(bundled_path(name))
    return name


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "diffusers": _offer_our_names,
    "diffusers.pipelines": _offer_our_package,
    _compat.PIPELINE_LOADING: _list_our_library,
    _compat.PIPELINE_UTILS: functools.partial(_accept_bundled_names, "DiffusionPipeline"),
    _compat.AUTO_MODEL: functools.partial(_accept_bundled_names, "AutoModel"),
}


# ---------------------------------------------------------------- when


class _RegisteringFinder(MetaPathFinder):
    """Finds the modules of `_REGISTRATIONS` through the other finders, and registers after each of their executions.

    It stays in `sys.meta_path`. A spec may be asked for any number of times without an import, and a module may be
    reloaded.
    """

    is_of_ul_tokenizer = True

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the next finder gives, with a loader that also registers; None for all other modules."""
        if name not in _REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            if _is_ours(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return _registering(spec)
        return None


def _is_ours(finder: Any) -> bool:
    # Not isinstance: after a reload of this module the finder in place is of the former class.
    return bool(getattr(finder, "is_of_ul_tokenizer", False))


def _registering(spec: ModuleSpec) -> ModuleSpec:
    """The spec with a copy of its loader, since other modules may share the loader itself."""
    if spec.loader is None:
        return spec
    loader = copy.copy(spec.loader)
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        _register_imported()

    loader.exec_module = execute_and_register  # type: ignore[method-assign]
    spec.loader = loader
    return spec


def our_class(name: str) -> Any:
    """Our class of this name in a saved config, imported if needed; None for any other name."""
    return getattr(import_module("ul_tokenizer"), name) if name in OUR_CLASSES else None
