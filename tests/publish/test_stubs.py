"""Pushed pipelines load in diffusers: with us imported as they are, without us by the stubs if code is trusted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.publish.stubs import stubs


def images_of(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = pipeline(height=32, width=32, num_inference_steps=2, output_type="pt", generator=generator)
    return torch.as_tensor(images.images)


def test_a_pipeline_has_a_stub_for_itself_and_for_each_of_our_components(
    pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    files = stubs(tmp_path)
    assert files.keys() == {"pipeline.py"} | {f"{part}/ul_tokenizer.py" for part in ("transformer", "scheduler", "vae")}
    assert files["vae/ul_tokenizer.py"].startswith(b"from ul_tokenizer import UnifiedLatentsAutoencoder  #")
    for code in files.values():
        exec(compile(code, "stub", "exec"), {})  # every stub imports a public name


def test_a_component_of_another_library_has_no_stub(tmp_path: Path) -> None:
    index = {"_class_name": "UnifiedLatentsPipeline", "vae": ["diffusers", "AutoencoderKL"], "tokenizer": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert stubs(tmp_path).keys() == {"pipeline.py"}


@pytest.mark.parametrize("content", [None, "no JSON", "[1]"])
def test_a_folder_without_an_index_has_no_stubs(
    model: UnifiedLatentsAutoencoder, tmp_path: Path, content: str | None
) -> None:
    model.save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    assert stubs(tmp_path) == {}


def test_diffusers_own_loader_takes_it_where_we_were_imported(
    hub: LoopbackHub, login: str, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.push_to_hub("tester/pipeline")
    back = DiffusionPipeline.from_pretrained("tester/pipeline", cache_dir=tmp_path)
    assert isinstance(back, UnifiedLatentsPipeline)
    assert torch.equal(images_of(back), images_of(pipeline))


def test_diffusers_takes_it_where_nobody_imported_us_if_code_is_trusted(
    hub: LoopbackHub, login: str, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.push_to_hub("tester/pipeline")
    code = (
        "import sys; from diffusers import DiffusionPipeline as P; assert 'ul_tokenizer' not in sys.modules;"
        "r = 'tester/pipeline';"
        "print(type(P.from_pretrained(r, custom_pipeline=r, trust_remote_code=True, cache_dir=sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "UnifiedLatentsPipeline", done.stderr[-2000:]
