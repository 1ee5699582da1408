"""`from_pretrained`: by bundled name, folder or hub id; whatever is wrong is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer, __version__
from ul_tokenizer.hub.download import Access
from ul_tokenizer.models.checkpoint import check_checkpoint
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.repository import MissingPriorError, license_and_metrics, load_autoencoder, load_prior, locate

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return folder


@pytest.fixture
def repository(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def cache(saved: Path, tmp_path: Path) -> Path:
    """A hub cache in which `owner/model` was downloaded."""
    root = tmp_path / "cache" / "models--owner--model"
    shutil.copytree(saved, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def sentence(name: object, cls: type[Any] = UnifiedLatentsAutoencoder, **kwargs: Any) -> str:
    """What the ValueError says."""
    with pytest.raises(ValueError) as error:
        cls.from_pretrained(name, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


# ---------------------------------------------------------------- what loads


def test_a_folder_loads_with_the_weights_that_were_saved(repository: Path) -> None:
    model = UnifiedLatentsAutoencoder.from_pretrained(repository)
    saved = load_file(repository / WEIGHTS)
    assert all(torch.equal(weight, saved[key]) for key, weight in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("name", ["./model", "model", "model/"])
def test_a_relative_folder_loads(repository: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.parent)
    assert load_autoencoder(name).config.latent_channels == 4


def test_the_prior_of_a_local_repository_gets_its_own_weights(repository: Path) -> None:
    prior = load_prior(str(repository))
    saved = load_file(repository / "prior" / WEIGHTS)
    assert all(torch.equal(weight, saved[key]) for key, weight in prior.state_dict().items())


def test_a_hub_id_loads_from_a_cache_that_another_tool_filled(cache: Path) -> None:
    kwargs: dict[str, Any] = {"cache_dir": str(cache), "local_files_only": True}
    assert load_autoencoder("owner/model", **kwargs).config._name_or_path == "owner/model"
    assert load_prior("owner/model", **kwargs).config.in_channels == 4
    files = locate("owner/model", access=Access(cache_dir=cache, local_files_only=True))
    assert (files.origin, files.revision) == ("hub", COMMIT)
    assert [path.name for path in files.weights("prior")] == [WEIGHTS]


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_both_names_of_the_dtype_work_and_norms_stay_in_fp32(repository: Path, key: str) -> None:
    model = UnifiedLatentsAutoencoder.from_pretrained(repository, **{key: torch.float16})
    assert model.encoder.conv_in.weight.dtype == torch.float16
    assert torch.float32 in {p.dtype for p in model.parameters()}
    assert torch.get_default_dtype() == torch.float32


def test_weights_saved_in_fp16_load_as_fp32(repository: Path) -> None:
    UnifiedLatentsAutoencoder.from_pretrained(repository).to(torch.float16).save_pretrained(repository)
    assert {p.dtype for p in load_autoencoder(str(repository)).parameters()} == {torch.float32}


def test_the_loading_info_is_there_for_who_asks(repository: Path) -> None:
    model, info = UnifiedLatentsAutoencoder.from_pretrained(repository, output_loading_info=True)
    assert isinstance(model, UnifiedLatentsAutoencoder)
    assert info["missing_keys"] == []


def test_an_average_of_weights_as_diffusers_saves_it_loads(repository: Path) -> None:
    model = UnifiedLatentsAutoencoder.from_pretrained(repository)
    average = EMAModel(model.parameters(), model_cls=UnifiedLatentsAutoencoder, model_config=model.config)
    average.optimization_step = 7
    average.save_pretrained(repository / "ema")
    assert EMAModel.from_pretrained(repository / "ema", UnifiedLatentsAutoencoder).optimization_step == 7


def test_private_keys_of_a_config_are_no_error(repository: Path) -> None:
    edit_config(repository, _written_by="someone")
    load_autoencoder(str(repository))


def test_a_subclass_loads_what_its_base_saved(repository: Path) -> None:
    class Mine(UnifiedLatentsAutoencoder):
        pass

    assert type(Mine.from_pretrained(repository)) is Mine


# ---------------------------------------------------------------- what doesn't


@pytest.mark.parametrize("name", ["ul-foto-f8", "./missing", "../a/b", "/no/such/folder", "a/b/c", "", "a b/c"])
def test_what_is_no_name_folder_or_hub_id_is_refused_without_asking_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.models.loading.fetch", lambda *a, **k: pytest.fail("asked"))
    assert f"Model {name} is neither a bundled name" in sentence(name)


def test_a_file_is_no_model(repository: Path) -> None:
    assert "nor an existing folder" in sentence(repository / "config.json")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    assert sentence(tmp_path) == f"Folder {tmp_path} holds no model: there is no config.json in it."


def test_a_repository_without_prior_is_an_error_of_its_own(repository: Path, cache: Path) -> None:
    shutil.rmtree(repository / "prior")
    with pytest.raises(MissingPriorError, match=r"has no prior: there is no prior/config.json"):
        load_prior(str(repository))


def test_missing_weights_are_named(repository: Path) -> None:
    (repository / WEIGHTS).unlink()
    assert f"there is no {WEIGHTS} in it" in sentence(repository)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_a_pickle_only_folder_is_refused_as_such(repository: Path, suffix: str) -> None:
    (repository / WEIGHTS).rename(repository / f"diffusion_pytorch_model{suffix}")
    text = sentence(repository)
    assert f"diffusion_pytorch_model{suffix}" in text
    assert "only safetensors are read" in text


def test_pickled_weights_cannot_be_asked_for(repository: Path) -> None:
    assert "use_safetensors must be True or None" in sentence(repository, use_safetensors=False)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_damaged_or_cut_short(repository: Path, keep: int) -> None:
    data = (repository / WEIGHTS).read_bytes()
    (repository / WEIGHTS).write_bytes(data[:keep])
    assert "damaged or cut short" in sentence(repository)


def test_weights_that_are_no_safetensors_are_damaged(repository: Path) -> None:
    (repository / WEIGHTS).write_bytes(b"<html>Not found</html>" * 100)
    assert "damaged or cut short" in sentence(repository)


def test_a_git_lfs_pointer_says_what_to_do(repository: Path) -> None:
    (repository / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in sentence(repository)


@pytest.mark.parametrize("text", ["{", "", '{"latent_channels": 4'])
def test_a_config_that_is_no_json_is_damaged(repository: Path, text: str) -> None:
    (repository / "config.json").write_text(text)
    assert "config.json" in sentence(repository)
    assert "is not JSON" in sentence(repository)


def test_a_config_that_is_no_object_is_refused(repository: Path) -> None:
    (repository / "config.json").write_text("[1]")
    assert "must hold a JSON object, got a list" in sentence(repository)


def test_an_unknown_config_key_is_named_with_our_version(repository: Path) -> None:
    edit_config(repository, warp_factor=9)
    text = sentence(repository)
    assert "'warp_factor'" in text
    assert f"ul_tokenizer {__version__}" in text


def test_a_config_of_another_class_is_refused(repository: Path) -> None:
    assert "of a UnifiedLatentsTransformer, got one of 'UnifiedLatentsAutoencoder'" in sentence(
        repository, UnifiedLatentsTransformer
    )


@pytest.mark.parametrize(
    "changes", [{"latent_channels": "four"}, {"latent_channels": 10**9}, {"encoder_block_out_channels": None}]
)
def test_a_config_value_out_of_range_is_one_sentence_and_leaves_the_default_dtype(
    repository: Path, changes: dict[str, Any]
) -> None:
    edit_config(repository, **changes)
    assert next(iter(changes)) in sentence(repository, torch_dtype=torch.float16)
    assert torch.get_default_dtype() == torch.float32


def test_weights_of_another_width_dont_fit(repository: Path) -> None:
    edit_config(repository, latent_channels=8, z_dim=8, latents_mean=None, latents_std=None)
    text = sentence(repository)
    assert "don't fit its config.json: encoder." in text
    assert "must have the shape (8, " in text
    assert ", got (4, " in text


def test_a_missing_weight_is_named(repository: Path) -> None:
    edit_weights(repository, lambda weights: weights.pop("encoder.conv_in.weight"))
    assert "encoder.conv_in.weight missing" in sentence(repository)


def test_a_weight_too_many_is_named(repository: Path) -> None:
    edit_weights(repository, lambda weights: weights.update({"surplus": torch.zeros(1), "z": torch.zeros(1)}))
    assert "surplus and 1 more unexpected" in sentence(repository)


def test_a_missing_variant_or_model_is_an_os_error_too_as_diffusers_has_it(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"holds no weights of the variant 'fp16'"):
        UnifiedLatentsAutoencoder.from_pretrained(repository, variant="fp16")
    with pytest.raises(OSError, match=r"there is no config\.json in it"):
        UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    (repository / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"holds no weights: there is no diffusion_pytorch_model"):
        UnifiedLatentsAutoencoder.from_pretrained(repository)


def test_a_folder_of_one_variant_says_which_and_keeps_the_sentence_that_diffusers_mixins_look_for(
    repository: Path,
) -> None:
    (repository / WEIGHTS).rename(repository / "diffusion_pytorch_model.fp16.safetensors")
    text = sentence(repository)
    assert "pass variant='fp16'" in text
    assert f"Error no file named diffusion_pytorch_model.bin found in directory {repository}." in text


def test_a_damaged_file_is_found_without_diffusers(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelMixin, "from_pretrained", lambda *a, **k: pytest.fail("asked"))
    edit_config(repository, latent_channels=8, z_dim=8, latents_mean=None, latents_std=None)
    assert "don't fit" in sentence(repository)
    (repository / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git-lfs pointer" in sentence(repository)
    (repository / "config.json").write_text("{")
    assert "is not JSON" in sentence(repository)


def test_errors_keep_their_cause(repository: Path) -> None:
    (repository / WEIGHTS).write_bytes((repository / WEIGHTS).read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged") as error:
        UnifiedLatentsAutoencoder.from_pretrained(repository)
    assert isinstance(error.value.__cause__, SafetensorError)
    (repository / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON") as error:
        UnifiedLatentsAutoencoder.from_pretrained(repository)
    assert isinstance(error.value.__cause__, json.JSONDecodeError)
    (repository / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an index of weights") as error:
        UnifiedLatentsAutoencoder.from_pretrained(repository)
    assert isinstance(error.value.__cause__, KeyError)


def test_the_checks_draw_no_random_numbers(repository: Path) -> None:
    state = torch.random.get_rng_state()
    check_checkpoint(UnifiedLatentsAutoencoder, "model", repository, None)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sharded_weights_load_and_a_missing_shard_is_named(repository: Path) -> None:
    model = UnifiedLatentsAutoencoder.from_pretrained(repository)
    (repository / WEIGHTS).unlink()
    model.save_pretrained(repository, max_shard_size="100KB")
    loaded = UnifiedLatentsAutoencoder.from_pretrained(repository)
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in model.state_dict().items())
    shard = sorted(repository.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    assert f"are not complete: {shard.name} is missing" in sentence(repository)


def test_a_dtype_that_is_none_is_refused(repository: Path) -> None:
    assert "torch_dtype must be a torch.dtype, got 'fp16'" in sentence(repository, torch_dtype="fp16")


# ---------------------------------------------------------------- the hub


def test_a_model_that_is_not_cached_says_so_offline(tmp_path: Path) -> None:
    text = sentence("owner/other", cache_dir=str(tmp_path), local_files_only=True)
    assert "owner/other is neither a local folder nor in the hub's cache" in text
    assert "hub can't be reached" in text


def test_cached_weights_that_are_cut_short_are_damaged(cache: Path) -> None:
    path = cache / "models--owner--model" / "snapshots" / COMMIT / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged or cut short" in sentence("owner/model", cache_dir=str(cache), local_files_only=True)


# ---------------------------------------------------------------- cards


def test_license_and_metrics_come_from_the_card(repository: Path) -> None:
    (repository / "README.md").write_text(
        "---\nlicense: apache-2.0\nmodel-index:\n- name: m\n  results:\n  - task: {type: image-to-image}\n"
        "    dataset: {name: photos, type: photos}\n    metrics: [{type: psnr, value: 25.5}]\n---\n# Card\n"
    )
    assert license_and_metrics(locate(str(repository))) == ("apache-2.0", {"psnr": 25.5})


def test_without_a_card_the_last_validation_speaks(repository: Path) -> None:
    assert license_and_metrics(locate(str(repository))) == (None, {})
    curve = {"training": [], "validation": [{"step": 1}, {"step": 2, "validation/psnr_1_step": 20.0}]}
    (repository / "training_curve.json").write_text(json.dumps(curve))
    _, metrics = license_and_metrics(locate(str(repository)))
    assert metrics == {"step": 2, "validation/psnr_1_step": 20.0}
