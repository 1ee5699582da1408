"""The list of models that load without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer import LogSNRScheduler, UnifiedLatentsAutoencoder
from ul_tokenizer.hub.download import fetch
from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.publish.listing import list_models


def test_without_a_cache_the_bundled_models_are_listed(tmp_path: Path) -> None:
    models = list_models(tmp_path / "none")
    assert [model.name for model in models] == list(bundled_names())
    kinds = {model.name: model.kind for model in models}
    assert (kinds["ul-photo-f8"], kinds["ul-fashion"]) == ("UnifiedLatentsAutoencoder", "UnifiedLatentsPipeline")
    assert {(model.origin, model.revision, model.license) for model in models} == {("bundled", None, "apache-2.0")}
    assert all(model.bytes > 1e6 and model.folder.is_dir() for model in models)


def test_each_cached_commit_of_our_classes_is_listed(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    first = model.push_to_hub("tester/model", license="mit")
    second = model.push_to_hub("tester/model", variant="fp16")
    for commit in (first, second):
        UnifiedLatentsAutoencoder.from_pretrained("tester/model", revision=commit, cache_dir=tmp_path)
    found = [model for model in list_models(tmp_path) if model.origin == "cached"]
    assert {(m.name, m.kind, m.revision, m.license) for m in found} == {
        ("tester/model", "UnifiedLatentsAutoencoder", commit, "mit") for commit in (first, second)
    }


def test_the_default_cache_is_the_one_that_downloads_use(
    hub: LoopbackHub, login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.add("owner/model", {"config.json": b'{"_class_name": "UnifiedLatentsTransformer"}'})
    fetch("owner/model", list)
    assert [m.name for m in list_models() if m.origin == "cached"] == ["owner/model"]


def test_a_scheduler_in_the_cache_is_listed(hub: LoopbackHub, login: str, tmp_path: Path) -> None:
    LogSNRScheduler().push_to_hub("tester/scheduler")
    LogSNRScheduler.from_pretrained("tester/scheduler", cache_dir=tmp_path)
    assert [m.kind for m in list_models(tmp_path) if m.origin == "cached"] == ["LogSNRScheduler"]


@pytest.mark.parametrize("config", [b'{"_class_name": "AutoencoderKL"}', b"{}", b"[1]", b"no JSON"])
def test_other_models_in_the_cache_are_not_listed(hub: LoopbackHub, tmp_path: Path, config: bytes) -> None:
    hub.add("owner/foreign", {"config.json": config})
    huggingface_hub.hf_hub_download("owner/foreign", "config.json", cache_dir=tmp_path)
    assert [model for model in list_models(tmp_path) if model.origin == "cached"] == []


def test_listing_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from ul_tokenizer.publish.listing import list_models; assert list_models();"
        "print({'torch', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "set()", done.stderr[-2000:]
