"""Pushing models, schedulers and pipelines: one commit with a real card; the real client against a hub on loopback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hub.loopback_hub import File, LoopbackHub
from ul_tokenizer import (
    LogSNRScheduler,
    UnifiedLatentsAutoencoder,
    UnifiedLatentsPipeline,
    UnifiedLatentsTransformer,
)
from ul_tokenizer.hub import errors
from ul_tokenizer.hub.upload import Target, push, stale_weights
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.publish.mixin import push_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    return build_autoencoder("ul-tiny-f8").eval()


@pytest.fixture(scope="module")
def pipeline(model: UnifiedLatentsAutoencoder) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    return UnifiedLatentsPipeline(build_prior("ul-tiny-f8").eval(), LogSNRScheduler(), model)


def card_of(hub: LoopbackHub, repo_id: str) -> str:
    return hub.repo(repo_id).head.files["README.md"].content.decode()


# ---------------------------------------------------------------- there and back


def test_what_is_pushed_comes_back_bit_for_bit(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    commit = model.push_to_hub("tester/model")
    back = UnifiedLatentsAutoencoder.from_pretrained("tester/model", cache_dir=tmp_path)
    assert back.commit_hash == commit == hub.repo("tester/model").head.oid
    assert all(torch.equal(weight, back.state_dict()[key]) for key, weight in model.state_dict().items())
    x, noise = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x, noise=noise).sample, back(x, noise=noise).sample)


def test_a_push_is_one_commit_with_weights_config_and_card(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder
) -> None:
    model.push_to_hub("tester/model", commit_message="First weights")
    repo = hub.repo("tester/model")
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "First weights"]
    assert sorted(repo.head.files) == [".gitattributes", "README.md", "config.json", WEIGHTS]
    assert repo.head.files[WEIGHTS].is_lfs


def test_the_same_again_is_no_commit(hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder) -> None:
    assert model.push_to_hub("tester/model") == model.push_to_hub("tester/model")
    assert len(hub.repo("tester/model").commits) == 2


def test_an_edit_during_a_push_is_kept(hub: LoopbackHub, login: str) -> None:
    hub.add("tester/card", {"README.md": b"first"})
    repo, seen = hub.repo("tester/card"), list[str | None]()

    def revise(_: str, text: str | None) -> str:
        seen.append(text)
        if len(seen) == 1:  # somebody edits the card on the hub's page
            repo.commit("main", "edit", {"README.md": File(b"edited", False)}, repo.head.oid)
        return f"{text}, generated"

    push(Target("tester/card"), {"config.json": b"{}"}, {"README.md": revise})
    assert seen == ["first", "edited"]
    assert repo.head.files["README.md"].content == b"edited, generated"


def test_a_repository_that_changes_all_the_time_is_an_error(hub: LoopbackHub, login: str) -> None:
    hub.add("tester/card", {"README.md": b"0"})
    repo = hub.repo("tester/card")

    def revise(_: str, text: str | None) -> str:
        repo.commit("main", "edit", {"README.md": File(f"{text}0".encode(), False)}, repo.head.oid)
        return "generated"

    with pytest.raises(errors.HubError, match="412"):
        push(Target("tester/card"), {}, {"README.md": revise})
    assert repo.head.files["README.md"].content == b"0000"


def test_saving_with_push_pushes_to_the_folders_name(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    (tmp_path / "run" / "notes").mkdir(parents=True)
    commit = model.save_pretrained(tmp_path / "run", push_to_hub=True, commit_message="x")
    assert commit == hub.repo("tester/run").head.oid
    assert (tmp_path / "run" / WEIGHTS).is_file()
    assert model.save_pretrained(tmp_path / "run") is None


def test_shards_replace_a_single_file_and_the_other_way_round(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    for size, is_sharded in ((None, False), ("200KB", True), (None, False)):
        model.push_to_hub("tester/model", max_shard_size=size)
        names = hub.repo("tester/model").head.files.keys()
        assert (f"{WEIGHTS}.index.json" in names, WEIGHTS in names) == (is_sharded, not is_sharded)
        back = UnifiedLatentsAutoencoder.from_pretrained("tester/model", cache_dir=tmp_path)
        assert all(torch.equal(weight, back.state_dict()[key]) for key, weight in model.state_dict().items())


def test_a_variant_leaves_other_weights_alone(hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder) -> None:
    model.push_to_hub("tester/model")
    model.push_to_hub("tester/model", variant="fp16")
    names = hub.repo("tester/model").head.files.keys()
    assert {WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"} <= set(names)


def test_stale_weights_are_those_of_the_folder_and_variant() -> None:
    known = ["diffusion_pytorch_model-00001-of-00002.safetensors", f"{WEIGHTS}.index.json", f"prior/{WEIGHTS}", "x.txt"]
    known += ["diffusion_pytorch_model.fp16-00001-of-00002.safetensors", f"{WEIGHTS}.index.fp16.json"]
    assert stale_weights(known, [WEIGHTS, "config.json"]) == set(known[:2])
    assert stale_weights(known, ["diffusion_pytorch_model.fp16.safetensors"]) == set(known[4:])
    assert stale_weights(known, ["config.json"]) == set()


def test_a_branch_and_a_pull_request(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    first = model.push_to_hub("tester/model")
    commit = model.half().push_to_hub("tester/model", revision="half")
    model.float()
    repo = hub.repo("tester/model")
    assert (repo.refs["main"], repo.refs["half"]) == (first, commit)
    request = UnifiedLatentsTransformer(4).push_to_hub("tester/model", subfolder="prior", create_pr=True)
    assert (repo.refs["main"], repo.refs["refs/pr/1"]) == (first, request)
    loaded = UnifiedLatentsTransformer.from_pretrained(
        "tester/model", subfolder="prior", revision="refs/pr/1", cache_dir=tmp_path
    )
    assert loaded.commit_hash == request


def test_a_subfolder_gets_no_card_of_its_own(hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder) -> None:
    model.push_to_hub("tester/model")
    before = card_of(hub, "tester/model")
    build_prior("ul-tiny-f8").push_to_hub("tester/model", subfolder="prior")
    assert {"prior/config.json", f"prior/{WEIGHTS}"} <= set(hub.repo("tester/model").head.files)
    assert card_of(hub, "tester/model") == before


def test_a_private_repository_is_made_private(hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder) -> None:
    model.push_to_hub("tester/secret", private=True)
    assert hub.repo("tester/secret").is_private


def test_a_scheduler_is_pushed(hub: LoopbackHub, login: str, tmp_path: Path) -> None:
    LogSNRScheduler(algorithm_type="ddpm").push_to_hub("tester/scheduler")
    back = LogSNRScheduler.from_pretrained("tester/scheduler", cache_dir=tmp_path)
    assert back.config.algorithm_type == "ddpm"


# ---------------------------------------------------------------- pipelines


def images_of(pipeline: Any) -> torch.Tensor:
    images = pipeline(
        height=32, width=32, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)
    )
    return torch.as_tensor(images.images)


def test_a_pipeline_comes_back_with_the_same_images(
    hub: LoopbackHub, login: str, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    commit = pipeline.push_to_hub("tester/pipeline")
    back = UnifiedLatentsPipeline.from_pretrained("tester/pipeline", cache_dir=tmp_path)
    assert back.commit_hash == commit
    assert torch.equal(images_of(back), images_of(pipeline))
    hub.log.clear()
    UnifiedLatentsPipeline.from_pretrained("tester/pipeline", cache_dir=tmp_path)
    assert len(hub.log) == 1


def test_a_pipelines_cache_works_offline(
    hub: LoopbackHub, login: str, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.push_to_hub("tester/pipeline")
    UnifiedLatentsPipeline.from_pretrained("tester/pipeline", cache_dir=tmp_path)
    hub.log.clear()
    UnifiedLatentsPipeline.from_pretrained("tester/pipeline", cache_dir=tmp_path, local_files_only=True)
    assert hub.log == []


def test_an_index_that_names_code_of_the_repository_is_refused(
    hub: LoopbackHub, login: str, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    pipeline.push_to_hub("tester/pipeline")
    files = {path: file.content for path, file in hub.repo("tester/pipeline").head.files.items()}
    index = json.loads(files["model_index.json"])
    trap = b"import pathlib; pathlib.Path('trapped').touch()\n"
    for name, change in (("part", {"vae": ["evil", "Evil"]}), ("itself", {"_class_name": ["evil", "Evil"]})):
        hub.add(
            f"owner/{name}",
            {
                **files,
                "evil.py": trap,
                "vae/evil.py": trap,
                "model_index.json": json.dumps({**index, **change}).encode(),
            },
        )
        with pytest.raises(ValueError, match=r"code of the repository") as error:
            UnifiedLatentsPipeline.from_pretrained(f"owner/{name}", cache_dir=tmp_path)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.rglob("evil.py"))


# ---------------------------------------------------------------- folders


def test_a_trainings_folder_is_pushed_without_its_checkpoints(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "checkpoint-5" / "autoencoder")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "prior")
    (tmp_path / "samples").mkdir()
    for name in ("samples/1.png", "checkpoint-5/random_states_0.pkl", "metrics.jsonl", "notes.pkl", ".secret.json"):
        (tmp_path / name).write_text("{}")
    push_folder(tmp_path, Target("tester/run"))
    assert sorted(hub.repo("tester/run").head.files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        WEIGHTS,
        "prior/config.json",
        f"prior/{WEIGHTS}",
    ]


def test_a_folder_without_a_model_is_not_pushed(hub: LoopbackHub, login: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="holds no model"):
        push_folder(tmp_path, Target("tester/run"))
    assert hub.log == []


# ---------------------------------------------------------------- refusals, and what must not leak


def test_without_a_token_or_with_one_that_only_reads_nothing_is_pushed(
    hub: LoopbackHub, model: UnifiedLatentsAutoencoder
) -> None:
    for token in (None, hub.read_token, "hf_wrong"):
        with pytest.raises(errors.NoAccessError, match="was denied") as error:
            model.push_to_hub("tester/model", token=token)
        assert "\n" not in str(error.value)
    assert hub.repos == {}


def test_a_name_that_is_none_is_one_sentence(hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder) -> None:
    with pytest.raises(errors.HubError, match=r"must be of the form owner/name, got 'my model'"):
        model.push_to_hub("my model")


def test_pickled_weights_are_not_written(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pickled weights are not written"):
        model.save_pretrained(tmp_path, safe_serialization=False)


def test_the_token_is_nowhere(hub: LoopbackHub, model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    """Neither in logs at DEBUG, nor in errors, configs, cards, commits or the cache."""
    code = """
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from ul_tokenizer import UnifiedLatentsAutoencoder as A
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.hub.upload import Target
from ul_tokenizer.hub.download import Access
token, cache = sys.argv[1:]
model = build_autoencoder("ul-tiny-f8")
model.push_to_hub("tester/model", token=token)
loaded = A.from_pretrained("tester/model", token=token, cache_dir=cache)
print(loaded.config, Target("x", token=token), Access(token=token))
for name, revision in (("tester/none", None), ("tester/model", "v9")):
    try:
        A.from_pretrained(name, revision=revision, token=token, cache_dir=cache)
    except ValueError:
        traceback.print_exc()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, hub.token, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_VERBOSITY": "debug", "DIFFUSERS_VERBOSITY": "debug"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "v9" in done.stderr
    written = [done.stdout.encode(), done.stderr.encode()]
    written += [file.content for commit in hub.repo("tester/model").commits.values() for file in commit.files.values()]
    written += [repr(hub.repo("tester/model").commits).encode(), repr(hub.log).encode()]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(hub.token.encode() in text for text in written)


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
