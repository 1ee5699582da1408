"""Repositories from the hub: one commit, from the cache first, checked; the real client against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from tests.hub.loopback_hub import Fault, LoopbackHub
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer
from ul_tokenizer.hub import errors
from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.models.checkpoint import NoModelError
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.repository import MissingPriorError, load_prior, locate

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a repository."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(hub: LoopbackHub, saved: dict[str, bytes]) -> str:
    hub.add("owner/model", saved)
    return "owner/model"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`from_pretrained` with a cache of its own."""

    def load(name: str, cls: Any = UnifiedLatentsAutoencoder, **kwargs: Any) -> Any:
        return cls.from_pretrained(name, **{"cache_dir": tmp_path / "cache", **kwargs})

    return load


def sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# ---------------------------------------------------------------- what loads


def test_a_model_loads_with_the_weights_and_the_commit_of_the_repository(
    hub: LoopbackHub, model: str, load: Any, saved: dict[str, bytes], tmp_path: Path
) -> None:
    loaded = load(model)
    (tmp_path / WEIGHTS).write_bytes(saved[WEIGHTS])
    there = __import__("safetensors.torch").torch.load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(weight, there[key]) for key, weight in loaded.state_dict().items())
    assert loaded.commit_hash == hub.repo(model).head.oid
    assert loaded.config._name_or_path == model


def test_a_cached_load_is_one_request_and_none_at_a_commit(hub: LoopbackHub, model: str, load: Any) -> None:
    commit = load(model).commit_hash
    hub.log.clear()
    load(model)
    assert hub.log == [("GET", f"/api/models/{model}")]
    hub.log.clear()
    assert load(model, revision=commit).commit_hash == commit
    assert hub.log == []


def test_a_prior_costs_one_request_more(hub: LoopbackHub, model: str, tmp_path: Path) -> None:
    load_prior(model, cache_dir=tmp_path)
    hub.log.clear()
    assert load_prior(model, cache_dir=tmp_path).config.in_channels == 4
    assert [path for _, path in hub.log] == [f"/api/models/{model}"]


def test_a_pinned_commit_stays_what_it_was(hub: LoopbackHub, model: str, load: Any, saved: dict[str, bytes]) -> None:
    first = hub.repo(model).head.oid
    torch.manual_seed(1)
    other = build_autoencoder("ul-tiny-f8")
    other.push_to_hub(model, token=hub.token)
    old, new = load(model, revision=first), load(model)
    assert old.commit_hash == first != new.commit_hash
    name = "encoder.conv_in.weight"
    assert torch.equal(new.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(old.state_dict()[name], new.state_dict()[name])


def test_branches_and_tags_are_revisions(hub: LoopbackHub, model: str, load: Any) -> None:
    repo = hub.repo(model)
    repo.refs["v1"] = first = repo.head.oid
    build_autoencoder("ul-tiny-f8").push_to_hub(model, token=hub.token)
    assert load(model, revision="v1").commit_hash == first


def test_a_part_of_a_pipeline_and_any_subfolder_load(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/pipeline", {"model_index.json": b"{}", **{f"vae/{name}": file for name, file in saved.items()}})
    assert load("owner/pipeline").config.latent_channels == 4
    assert load_prior("owner/pipeline").config.in_channels == 4
    assert load("owner/pipeline", UnifiedLatentsTransformer, subfolder="vae/prior").config.in_channels == 4


def test_only_what_the_model_needs_is_fetched(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    more = {
        "big.safetensors": b"x",
        "pytorch_model.bin": b"x",
        "model.py": b"raise SystemExit",
        "diffusion_pytorch_model.fp16.safetensors": b"x",
    }
    hub.add("owner/model", {**saved, **more})
    load("owner/model")
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for _, path in hub.log if "/resolve/" in path}
    assert fetched == {"README.md", "config.json", WEIGHTS}


def test_variants_are_asked_for_by_name(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    half = build_autoencoder("ul-tiny-f8").half()
    half.push_to_hub("tester/variants", token=hub.token, variant="fp16")
    assert (
        load("tester/variants", variant="fp16", torch_dtype=torch.float16).encoder.conv_in.weight.dtype == torch.float16
    )
    with pytest.raises(ValueError, match=r"holds no weights: there is no diffusion_pytorch_model.safetensors"):
        load("tester/variants")


# ---------------------------------------------------------------- without the hub


def test_a_cached_model_loads_while_the_hub_is_in_trouble(hub: LoopbackHub, model: str, load: Any) -> None:
    commit = load(model).commit_hash
    hub.faults.append(Fault("unavailable", times=1000))
    start = time.perf_counter()
    assert load(model).commit_hash == commit
    assert time.perf_counter() - start < 2
    assert load(model, local_files_only=True).commit_hash == commit


@pytest.mark.parametrize("how", ["offline", "server down"])
def test_a_cached_model_loads_without_the_hub_in_another_process(
    hub: LoopbackHub, model: str, load: Any, tmp_path: Path, how: str
) -> None:
    commit = load(model).commit_hash
    changes = {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "import sys, time; from ul_tokenizer import UnifiedLatentsAutoencoder as A; start = time.perf_counter();"
        "print(A.from_pretrained('owner/model', cache_dir=sys.argv[1]).commit_hash, time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    found, seconds = done.stdout.split()
    assert found == commit
    assert float(seconds) < 2


@pytest.mark.parametrize("how", ["offline", "trouble"])
def test_what_another_tool_cached_is_not_taken_for_the_whole_repository(
    hub: LoopbackHub, model: str, load: Any, tmp_path: Path, how: str
) -> None:
    for file in ("config.json", WEIGHTS):
        huggingface_hub.hf_hub_download(model, file, cache_dir=tmp_path / "cache")
    hub.faults.append(Fault("unavailable", times=1000))
    load(model, local_files_only=how == "offline")
    hub.faults.clear()
    commit = hub.repo(model).head.oid
    assert load_prior(model, revision=commit, cache_dir=tmp_path / "cache").config.in_channels == 4


def test_what_was_never_loaded_needs_the_hub(hub: LoopbackHub, model: str, load: Any) -> None:
    with pytest.raises(errors.OfflineError, match="hub can't be reached"):
        load(model, local_files_only=True)
    hub.faults.append(Fault("unavailable", times=1000))
    with pytest.raises(errors.OfflineError, match="hub can't be reached"):
        load(model)


def test_what_is_fetched_once_describes_the_model_offline(
    hub: LoopbackHub, model: str, load: Any, tmp_path: Path
) -> None:
    load(model)
    files = locate(model, access=Access(cache_dir=tmp_path / "cache", local_files_only=True))
    assert (files.folder / "README.md").is_file()
    assert len(files.sha256()) == 64


# ---------------------------------------------------------------- bytes on the way


def test_an_interrupted_download_goes_on(hub: LoopbackHub, model: str, load: Any, saved: dict[str, bytes]) -> None:
    hub.faults.append(Fault("cut", WEIGHTS, after=len(saved[WEIGHTS]) // 2))
    load(model)
    assert sum(method == "GET" and WEIGHTS in path and "/resolve/" not in path for method, path in hub.log) == 2


def test_a_server_that_ignores_ranges_gives_the_whole_file(hub: LoopbackHub, model: str, load: Any) -> None:
    hub.faults += [Fault("cut", WEIGHTS, after=1000), Fault("ignore_range", WEIGHTS)]
    load(model)


def test_wrong_bytes_are_fetched_once_more(hub: LoopbackHub, model: str, load: Any) -> None:
    hub.faults.append(Fault("corrupt", WEIGHTS))
    load(model)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_wrong_bytes_twice_are_refused_and_not_kept(
    hub: LoopbackHub, model: str, load: Any, file: str, tmp_path: Path
) -> None:
    hub.faults.append(Fault("corrupt", file, times=2))
    with pytest.raises(errors.DamagedDownloadError, match=f"File {file} of hub repository owner/model") as error:
        load(model)
    sentence(error.value)
    assert not list((tmp_path / "cache").rglob(file))
    load(model)


def test_bytes_that_change_in_the_cache_before_they_were_checked_are_seen(
    hub: LoopbackHub, model: str, load: Any, tmp_path: Path
) -> None:
    """As after a kill between download and check."""
    load(model)
    next((tmp_path / "cache").rglob("ul_tokenizer/*.json")).unlink()
    weights = next((tmp_path / "cache").rglob(WEIGHTS)).resolve()
    weights.write_bytes(weights.read_bytes()[:-100] + bytes(100))
    load(model)
    hub.log.clear()
    load(model)
    assert len(hub.log) == 1


@pytest.mark.multiprocess
def test_three_processes_fill_one_cache(hub: LoopbackHub, model: str, tmp_path: Path) -> None:
    code = (
        "import sys; from ul_tokenizer import UnifiedLatentsAutoencoder as A;"
        "print(A.from_pretrained('owner/model', cache_dir=sys.argv[1]).commit_hash)"
    )
    hub.faults.append(Fault("slow", WEIGHTS, after=300, times=100))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=100)[0].strip() for process in started] == [hub.repo(model).head.oid] * 3


# ---------------------------------------------------------------- what the hub refuses


def test_a_missing_repository_is_named(hub: LoopbackHub, load: Any) -> None:
    with pytest.raises(
        errors.RepositoryMissingError, match="owner/none is neither a local folder nor a repository of the hub"
    ) as error:
        load("owner/none")
    sentence(error.value)


def test_a_private_repository_needs_its_token(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/secret", saved, is_private=True)
    with pytest.raises(errors.RepositoryMissingError, match="a private repository needs `hf auth login`"):
        load("owner/secret")
    assert load("owner/secret", token=hub.read_token).commit_hash == hub.repo("owner/secret").head.oid


def test_a_gated_repository_says_so(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/gated", saved, is_gated=True)
    with pytest.raises(errors.RepositoryGatedError, match="accept its terms"):
        load("owner/gated", token=hub.read_token)


def test_a_revision_that_is_none_is_named(hub: LoopbackHub, model: str, load: Any) -> None:
    with pytest.raises(errors.RevisionMissingError, match="has no revision 'v9'"):
        load(model, revision="v9")


def test_a_repository_without_a_model_or_prior_is_an_error_of_its_own(
    hub: LoopbackHub, saved: dict[str, bytes], load: Any
) -> None:
    hub.add("owner/empty", {"README.md": b"# none"})
    with pytest.raises(NoModelError, match=r"there is no config.json for it"):
        load("owner/empty")
    hub.add("owner/bare", {name: file for name, file in saved.items() if "/" not in name})
    with pytest.raises(MissingPriorError, match="has no prior"):
        load_prior("owner/bare")


# ---------------------------------------------------------------- hostile repositories


def test_pickled_weights_are_refused_and_not_fetched(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/pickle", {"config.json": saved["config.json"], "diffusion_pytorch_model.bin": b"\x80\x04"})
    with pytest.raises(ValueError, match=r"has pickled weights \(diffusion_pytorch_model.bin\)") as error:
        load("owner/pickle")
    sentence(error.value)
    assert not any("/resolve/" in path for _, path in hub.log)


@pytest.mark.parametrize("shard", ["../../secret.safetensors", "/etc/passwd", "other.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(
    hub: LoopbackHub, saved: dict[str, bytes], load: Any, shard: str
) -> None:
    index = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": shard}}
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    files = {
        "config.json": saved["config.json"],
        name: saved[WEIGHTS],
        f"{WEIGHTS}.index.json": json.dumps(index).encode(),
    }
    hub.add("owner/hostile", files)
    with pytest.raises(ValueError, match="none of this folder's weights") as error:
        load("owner/hostile")
    sentence(error.value)


def test_a_shard_that_is_lacking_is_named(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": shards[0], "encoder.conv_in.bias": shards[1]}}
    files = {
        "config.json": saved["config.json"],
        shards[0]: saved[WEIGHTS],
        f"{WEIGHTS}.index.json": json.dumps(index).encode(),
    }
    hub.add("owner/cut", files)
    with pytest.raises(ValueError, match=f"{shards[1]} is missing"):
        load("owner/cut")


def test_a_config_beyond_all_measure_is_refused_before_memory_is_taken(
    hub: LoopbackHub, saved: dict[str, bytes], load: Any
) -> None:
    config = json.loads(saved["config.json"]) | {"latent_channels": 10**12}
    hub.add("owner/huge", {**saved, "config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="latent_channels"):
        load("owner/huge")


def test_a_truncated_safetensors_header_is_one_sentence(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/truncated", {**saved, WEIGHTS: saved[WEIGHTS][:50]})
    with pytest.raises(ValueError, match="damaged or cut short") as error:
        load("owner/truncated")
    sentence(error.value)


def test_a_card_with_broken_yaml_harms_nothing(hub: LoopbackHub, saved: dict[str, bytes], load: Any) -> None:
    hub.add("owner/card", {**saved, "README.md": b"---\nlicense: [\n---\n# Card\n"})
    load("owner/card")


@pytest.mark.parametrize("name", ["owner/my model", "a/b/c", "owner/", "own er/x"])
def test_what_is_no_id_is_refused_without_a_request(hub: LoopbackHub, load: Any, name: str) -> None:
    with pytest.raises(ValueError, match="nor a hub id"):
        load(name)
    assert hub.log == []


def test_a_data_set_is_fetched_as_one(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("owner/data", {"a.txt": b"a", "b.txt": b"b"}, kind="dataset")
    snapshot = fetch(
        "owner/data", lambda files: [f for f in files if f == "a.txt"], None, "dataset", Access(cache_dir=tmp_path)
    )
    assert [path.name for path in snapshot.folder.iterdir()] == ["a.txt"]


def test_a_name_with_wildcards_stands_for_one_file(hub: LoopbackHub, tmp_path: Path) -> None:
    names = ["a[12]*?.txt", "a1.txt", "a[12]xx.txt"]
    hub.add("owner/data", dict.fromkeys(names, b"a"))
    snapshot = fetch("owner/data", lambda files: names[:1], access=Access(cache_dir=tmp_path))
    assert [path.name for path in snapshot.folder.iterdir()] == names[:1]
