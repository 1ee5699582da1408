"""Cards say what the files of a folder say; the facts about a class come from the class."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer import (
    LogSNRScheduler,
    UnifiedLatentsAutoencoder,
    UnifiedLatentsPipeline,
    UnifiedLatentsTransformer,
)
from ul_tokenizer.hub.upload import Target
from ul_tokenizer.models.presets import build_prior
from ul_tokenizer.publish.card_merge import Card
from ul_tokenizer.publish.cards import model_card
from ul_tokenizer.publish.facts import facts_of
from ul_tokenizer.publish.mixin import push_folder
from ul_tokenizer.registration import OUR_CLASSES

TRAINING = (
    "output_dir: /home/me/run\ntrain_data_dir: /home/me/photos\nseed: 3\nresolution: 64\n"
    "num_validation_images: 16\nuse_ema: true\npretrained_model_name_or_path: owner/base\nhub_token: secret\n"
)
ROWS = [{"step": 10, "loss": 1.0}, {"step": 10, "validation/psnr_1_step": 25.5, "validation/bits_per_pixel": 0.25}]


@pytest.fixture
def folder(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> Path:
    """An autoencoder as a training leaves it, with a last line that a kill cut short."""
    model.save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text(TRAINING)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"step": 11, "val')
    return tmp_path


def card_of(hub: LoopbackHub, repo_id: str) -> str:
    return hub.repo(repo_id).head.files["README.md"].content.decode()


# ---------------------------------------------------------------- what a card says


def test_a_card_has_license_data_figures_and_training(folder: Path) -> None:
    card = str(model_card(folder, "tester/run", "apache-2.0"))
    for text in (
        "license: apache-2.0",
        "library_name: ul_tokenizer",
        "base_model: owner/base",
        "- image-tokenizer",
        'UnifiedLatentsAutoencoder.from_pretrained("tester/run")',
        "| latent channels | 4 |",
        "| psnr 1 step | 25.5 dB |",
        "On 16 held-out crops of 64×64, seed 3, after step 10, averaged weights.",
        "train_data_dir: photos",
    ):
        assert text in card, text


def test_a_card_does_not_show_paths_or_tokens(folder: Path) -> None:
    card = str(model_card(folder, "tester/run"))
    assert not [text for text in ("/home/me", "secret", "output_dir") if text in card]


def test_the_client_reads_the_figures_of_a_card(folder: Path) -> None:
    data: Any = ModelCard(str(model_card(folder, "tester/run"))).data
    assert data.model_name == "run"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {"psnr_1_step": 25.5, "bits_per_pixel": 0.25}
    assert {(r.task_type, r.dataset_type) for r in data.eval_results} == {("image-to-image", "photos")}


def test_a_card_without_a_training_has_no_figures(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = model_card(tmp_path, "tester/run")
    assert card.metadata.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Nothing was measured yet." in card.body
    assert "The training is not recorded." in card.body


@pytest.mark.parametrize("content", ["output_dir: [", "- a list", ""])
def test_a_damaged_training_config_is_left_out(folder: Path, content: str) -> None:
    (folder / "config.yaml").write_text(content)
    assert "The training is not recorded." in model_card(folder, "tester/run").body


def test_a_pushed_card_is_the_generated_one(hub: LoopbackHub, login: str, folder: Path) -> None:
    push_folder(folder, Target("tester/run"), "apache-2.0")
    assert card_of(hub, "tester/run") == str(model_card(folder, "tester/run", "apache-2.0"))


# ---------------------------------------------------------------- facts of classes


def test_each_class_that_can_be_pushed_declares_its_own_facts() -> None:
    for name in OUR_CLASSES:
        facts = facts_of(name)
        assert facts is not None
        assert f"{name}.from_pretrained(" in facts.usage
        assert "{repo_id}" in facts.usage


def test_facts_name_keys_that_the_config_of_the_class_has(pipeline: UnifiedLatentsPipeline) -> None:
    for part in (pipeline.transformer, pipeline.vae):
        assert part.card_facts.config_facts.keys() <= part.config.keys()


def saved(part: Any, folder: Path) -> Card:
    part.save_pretrained(folder)
    (folder / "config.yaml").write_text("seed: 3\nsigmoid_bias: 2.0\n")
    return model_card(folder, "tester/run")


def commands(card: Card) -> list[str]:
    return re.findall(r"^```sh\n(.*)\n```$", card.body, re.MULTILINE)


def test_the_class_decides_the_task_and_the_training_command(
    model: UnifiedLatentsAutoencoder, pipeline: UnifiedLatentsPipeline, tmp_path: Path
) -> None:
    launch = "accelerate launch -m ul_tokenizer.train"
    for part, task, expected in (
        (model, "image-to-image", [f"{launch} autoencoder --config config.yaml"]),
        (pipeline, "unconditional-image-generation", [f"{launch} base --config config.yaml"]),
        (build_prior("ul-tiny-f8"), None, []),
        (LogSNRScheduler(), None, []),
    ):
        card = saved(part, tmp_path / type(part).__name__)
        assert (card.metadata.get("pipeline_tag"), commands(card)) == (task, expected)
        assert f"from ul_tokenizer import {type(part).__name__}\n" in card.body


def test_the_card_of_a_pipeline_describes_each_network(pipeline: UnifiedLatentsPipeline, tmp_path: Path) -> None:
    body = saved(pipeline, tmp_path).body
    for text in (
        "| transformer: class | `UnifiedLatentsTransformer` |",
        "| transformer: log-SNR of z_0 | 5.0 |",
        "| vae: latent channels | 4 |",
        "| vae: weights | 0.",
        "image = pipe().images[0]",
    ):
        assert text in body, text


@pytest.mark.parametrize("name", ["AutoencoderKL", "LogSNRSchedulerOfSomeoneElse", "", "['evil', 'Evil']"])
def test_a_foreign_class_gets_a_generic_card(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, "latent_channels": 4}))
    (tmp_path / "config.yaml").write_text("sigmoid_bias: 2.0\n")
    card = model_card(tmp_path, "tester/run", "mit")
    assert card.metadata == {"license": "mit"}
    assert "A model." in card.body
    assert "ul_tokenizer import" not in card.body
    assert commands(card) == []


def test_a_scheduler_saves_and_pushes_with_the_options_of_weights(hub: LoopbackHub, login: str, tmp_path: Path) -> None:
    LogSNRScheduler().save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler_config.json"]
    LogSNRScheduler().push_to_hub("tester/scheduler", variant="fp16")
    assert "scheduler_config.json" in hub.repo("tester/scheduler").head.files


def test_the_card_of_somebody_elses_subclass_claims_nothing(tmp_path: Path) -> None:
    class Mine(UnifiedLatentsTransformer):
        pass

    Mine(4).save_pretrained(tmp_path)
    assert model_card(tmp_path, "tester/run").metadata == {}


# ---------------------------------------------------------------- cards that exist already


def test_a_second_push_renews_the_card_and_leaves_what_a_person_wrote(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    push_folder(tmp_path, Target("tester/run"))
    repo = hub.repo("tester/run")
    assert "Nothing was measured yet." in card_of(hub, "tester/run")
    text = card_of(hub, "tester/run")
    text = text.replace("An image tokenizer", "My own tokenizer").replace("# run\n", "# run\n\nWritten by hand.\n")
    text = text.replace("library_name", "license: mit\nlibrary_name")
    file = repo.head.files["README.md"]
    repo.commit("main", "edited", {**repo.head.files, "README.md": type(file)(text.encode(), False)})
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "validation/psnr_1_step": 25.5}\n')
    push_folder(tmp_path, Target("tester/run"), "apache-2.0")
    card = card_of(hub, "tester/run")
    for text in ("My own tokenizer", "Written by hand.", "license: mit", "| psnr 1 step | 25.5 dB |", "value: 25.5"):
        assert text in card, text
    assert "apache" not in card
    assert "Nothing was measured yet." not in card


def test_a_card_that_a_person_wrote_is_left_alone(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder
) -> None:
    hub.add("tester/mine", {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n\nAll by hand.\n"})
    model.push_to_hub("tester/mine")
    card = card_of(hub, "tester/mine")
    assert card.endswith("# Mine\n\nAll by hand.\n")
    assert card.startswith("---\nlicense: mit\nlibrary_name: ul_tokenizer\n")


def test_a_folders_own_card_is_pushed_as_it_is(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# Mine, and no metadata\n")
    push_folder(tmp_path, Target("tester/run"))
    assert card_of(hub, "tester/run") == "# Mine, and no metadata\n"


def test_broken_metadata_of_a_card_is_replaced_and_its_text_kept(
    hub: LoopbackHub, login: str, model: UnifiedLatentsAutoencoder
) -> None:
    hub.add("tester/broken", {"README.md": b"---\nlicense: [\n---\n# Mine\n"})
    model.push_to_hub("tester/broken")
    card = card_of(hub, "tester/broken")
    assert card.endswith("# Mine\n")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "ul_tokenizer"
