"""Base models of captions: which encoders there are, what is learned and saved, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.text_models import WIDTH, make_model, save_text_encoder
from ul_tokenizer import LatentDataset, UnifiedLatentsPipeline
from ul_tokenizer.training.base_validation import draw_samples
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.text import TextEncoder, load_text_encoder, padded, tokenizer_folder
from ul_tokenizer.training.text_cache import TextCache

ROOT = Path(__file__).parents[2]
Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]
NAMES = ("dark", "light")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_encoder(tmp_path_factory.mktemp("text") / "encoder")


@pytest.fixture(scope="session")
def captioned(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dark and the light pictures in one folder, told apart by their captions alone."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = []
    for name in NAMES:
        for path in sorted((classes / name).glob("*.png")):
            shutil.copy(path, folder / f"{name}-{path.name}")
            rows.append({"file_name": f"{name}-{path.name}", "caption": f"a {name} picture"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def options(encoder: Path, captioned: Path) -> dict[str, Any]:
    return {"text_encoder": encoder, "train_data_dir": captioned}


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("kind", ["clip-text", "clip", "t5", "bert"])
def test_any_encoder_gives_the_hidden_states_of_its_text_part(kind: str, tmp_path: Path) -> None:
    text = load_text_encoder(str(save_text_encoder(tmp_path, kind)))
    whole = make_model(kind).eval()
    part = {"clip": lambda: whole.text_model, "t5": lambda: whole.encoder}.get(kind, lambda: whole)()
    states, mask = text(["a dark picture", "light"])
    tokens = text.tokenizer(["a dark picture", "light"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = part(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert text.width == WIDTH and mask.tolist() == [[True] * 3, [True, False, False]]
    torch.testing.assert_close(states[mask], expected[mask])
    assert not any(parameter.requires_grad for parameter in text.model.parameters())
    assert not any("decoder" in name or "vision" in name for name, _ in text.model.named_parameters())


def test_texts_do_not_depend_on_their_neighbours_and_none_is_no_text(encoder: Path) -> None:
    text = load_text_encoder(str(encoder))
    together, alone = text(["a dark picture", None, "light", ""]), text(["light"])
    assert together.mask.sum(1).tolist() == [3, 0, 1, 0]
    torch.testing.assert_close(together.states[2, :1], alone.states[0, :1])
    assert text([None, ""]).states.shape == (2, 1, WIDTH) and not text([None]).mask.any()


def test_texts_are_cut_off_and_the_saved_tokenizer_does_so_too(encoder: Path, tmp_path: Path) -> None:
    text = load_text_encoder(str(encoder), max_tokens=2)
    assert text(["a dark picture of nothing"]).states.shape[1] == 2
    text.tokenizer.save_pretrained(tmp_path)
    saved: Any = type(text.tokenizer).from_pretrained(tmp_path)
    assert saved.model_max_length == 2
    with pytest.raises(ValueError, match=r"^--max_text_tokens must be at most 8 for this text encoder, got 9\.$"):
        load_text_encoder(str(encoder), max_tokens=9)


def test_an_encoder_without_some_of_its_weights_is_refused(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "encoder")
    file = tmp_path / "encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if "q_proj.weight" not in name}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"^--text_encoder .* can't be loaded: a CLIPTextModel needs the weights .*q_"):
        load_text_encoder(str(tmp_path / "encoder"))


def test_the_tokenizer_of_a_pipeline_lies_beside_the_encoder() -> None:
    assert [tokenizer_folder(name) for name in (None, "text_encoder_2", "a/text_encoder", "other")] == [
        "",
        "tokenizer_2",
        "a/tokenizer",
        "other",
    ]


def test_an_encoder_in_a_pipeline_is_found(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "text_encoder", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(encoder, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("model*", "config.json"))
    text = load_text_encoder(str(tmp_path), subfolder="text_encoder")
    assert torch.equal(text(["light"]).states, load_text_encoder(str(encoder))(["light"]).states)


def test_padding_keeps_rows_and_takes_none_for_no_text() -> None:
    rows = [torch.ones(2, 3), torch.zeros(0, 3), torch.full((4, 3), 2.0)]
    states, mask = padded(rows)
    assert states.shape == (3, 4, 3) and mask.sum(1).tolist() == [2, 0, 4]
    assert torch.equal(states[0, :2], rows[0]) and torch.equal(states[2], rows[2]) and not states[1].any()
    assert padded([torch.zeros(0, 3)]).states.shape == (1, 1, 3)


# ---------------------------------------------------------------- training


def test_captions_steer_what_a_saved_pipeline_generates(
    train2: Train, logged: Logged, options: dict[str, Any], tmp_path: Path
) -> None:
    learning = {"max_train_steps": 200, "learning_rate": 1e-2, "ema_decay": 0.9, "train_batch_size": 8}
    caches = {"cache_latents": True, "cache_text_embeddings": True}
    assert train2(tmp_path, **options, **learning, **caches, logging_steps=10, max_text_tokens=6) == 0
    pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.config.cross_attention_dim == WIDTH
    assert pipeline.transformer.config.num_class_embeds is None
    assert pipeline.tokenizer.model_max_length == 6
    means = [pipeline.vae.encode(torch.full((1, 3, 16, 16), level)).latent for level in (-0.84, 0.73)]
    for number, name in enumerate(NAMES):
        prompts = [f"a {name} picture"] * 8
        (z,) = pipeline(prompt=prompts, num_inference_steps=8, output_type="latent", return_dict=False)
        own, other = ((z - means[k]).square().mean() for k in (number, 1 - number))
        assert own < other


def test_validation_draws_the_captions_that_are_held_out(
    train2: Train, logged: Logged, options: dict[str, Any], tmp_path: Path
) -> None:
    assert train2(tmp_path, **options, validation_steps=1, validation_guidance_scale=1.5) == 0
    metrics = [line for line in logged(tmp_path) if "validation/loss" in line]
    assert len(metrics) == 2
    picture = Image.open(tmp_path / "samples" / "step-0000002.png")
    assert picture.size == (2 * 18, 4 * 18)  # two held-out captions, four samples of each


def test_a_sample_is_drawn_for_every_caption_that_is_held_out(
    make_stage: Callable[..., Stage2], options: dict[str, Any]
) -> None:
    stage = make_stage(**options, num_validation_images=5)
    assert stage._held_out is not None and stage._held_out.text is not None
    assert stage._held_out.text.mask.sum(1).tolist() == [3] * 5
    samples = torch.cat(list(draw_samples(stage.pipeline(), stage._held_out, 2, 1, 1.5)))
    assert samples.shape == (5, 3, 16, 16)


def test_cached_states_give_the_losses_of_the_encoder_itself(
    make_stage: Callable[..., Stage2], options: dict[str, Any]
) -> None:
    plain, cached = make_stage(**options), make_stage(**options, cache_text_embeddings=True)
    losses = []
    for stage in (plain, cached):
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():  # at the start, many weights are zero and no caption could matter
            for parameter in stage.transformer.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
        batch = stage.collate([stage.dataset[n] for n in range(4)])
        assert ("states" in batch) == (stage is cached)
        losses.append(stage.loss(stage.model, batch, Draws(0, range(4), range(4)))[0])
        batch["captions"] = ["nothing"] * 4
        without = {name: value for name, value in batch.items() if name not in ("states", "mask")}
        assert not torch.allclose(stage.loss(stage.model, without, Draws(0, range(4), range(4)))[0], losses[-1])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


def test_captions_are_dropped_with_the_classes_by_the_draw_alone(
    make_stage: Callable[..., Stage2], options: dict[str, Any]
) -> None:
    stage = make_stage(**options, caption_dropout=0.25)
    dropped = []
    for step in range(500):
        of_step = range(4 * step, 4 * step + 4)
        whole = stage._text_of({"captions": ["light"] * 4}, Draws(step, of_step, of_step))
        half = stage._text_of({"captions": ["light"] * 2}, Draws(step, of_step, of_step[1::2]))
        assert whole is not None and half is not None
        assert torch.equal(whole.mask[1::2], half.mask)
        dropped += (~whole.mask.any(1)).tolist()
    assert 0.21 < sum(dropped) / len(dropped) < 0.29


def test_a_latent_data_set_brings_its_captions(
    make_stage: Callable[..., Stage2], train2: Train, options: dict[str, Any], encoder: Path, tmp_path: Path
) -> None:
    make_stage(**options, cache_latents=True)
    latents = LatentDataset(tmp_path / "latents")
    assert {sample["caption"] for sample in latents} == {"a dark picture", "a light picture"}
    stored = {"latent_dataset": tmp_path / "latents", "train_data_dir": None, "text_encoder": encoder}
    for name, caches in (("plain", False), ("cached", True)):
        run = tmp_path / name
        assert train2(run, **stored, cache_text_embeddings=caches, validation_steps=1) == 0
        assert UnifiedLatentsPipeline.from_pretrained(run).transformer.config.cross_attention_dim == WIDTH


@pytest.mark.multiprocess
def test_two_processes_with_caches_do_not_change_the_run(
    train2: Train,
    run_flags: Callable[..., list[str]],
    options: dict[str, Any],
    logged: Logged,
    weights: Weights,
    tmp_path: Path,
) -> None:
    run = {**options, "cache_latents": True, "cache_text_embeddings": True, "adam_epsilon": 1e-2}
    assert train2(tmp_path / "a", **run) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "ul_tokenizer.train", "base", *run_flags(tmp_path / "b", **run, train_batch_size=2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for line, other in zip(logged(tmp_path / "a"), logged(tmp_path / "b"), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
    written = {path.name.split("-")[1] for path in (tmp_path / "b" / "latents").glob("shard-*")}
    assert written == {"r000", "r001"}  # each process its share


# ---------------------------------------------------------------- the cache


@pytest.fixture
def text(encoder: Path) -> TextEncoder:
    return load_text_encoder(str(encoder))


def test_a_cache_gives_back_the_hidden_states_of_each_caption(text: TextEncoder, tmp_path: Path) -> None:
    cache = TextCache(tmp_path, text)
    captions = ["a dark picture", "light", "a picture of nothing", "light"]
    cache.add(cache.missing(captions), text, 2, lambda count: None)
    cache.refresh()
    assert len(cache) == 3 and cache.missing(captions) == []
    for caption in captions:
        states, mask = text([caption])
        torch.testing.assert_close(cache[caption].float(), states[mask], rtol=1e-3, atol=1e-3)
    assert cache[None].shape == cache[""].shape == (0, WIDTH)
    with pytest.raises(KeyError, match="has no embedding"):
        cache["dark"]


def test_a_killed_job_leaves_whole_files_and_a_later_one_adds_the_rest(
    text: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.training.text_cache.FILE_CAPTIONS", 2)
    captions = ["a", "of", "dark", "light", "picture"]
    calls: list[list[str]] = []

    def dies(texts: list[str]) -> Any:
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return text(texts)

    cache = TextCache(tmp_path, text)
    with pytest.raises(KeyboardInterrupt):
        cache.add(captions, dies, 2, lambda count: None)  # type: ignore[arg-type]
    later = TextCache(tmp_path, text)
    assert later.missing(captions) == ["picture"]
    assert not list(later.folder.glob(".*"))


def test_caches_of_other_encoders_or_lengths_are_kept_apart(text: TextEncoder, encoder: Path, tmp_path: Path) -> None:
    other = load_text_encoder(str(encoder), max_tokens=3)
    moved = load_text_encoder(str(encoder))
    with torch.no_grad():
        next(moved.model.parameters()).add_(1)
    folders = {TextCache(tmp_path, each).folder for each in (text, other, moved, load_text_encoder(str(encoder)))}
    assert len(folders) == 3


def test_a_second_run_encodes_no_caption(
    make_stage: Callable[..., Stage2], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**options, "cache_text_embeddings": True, "text_embeddings_dir": tmp_path / "shared"}
    make_stage(**shared)
    monkeypatch.setattr(TextCache, "_write", lambda *_: pytest.fail("it encoded again"))
    stage = make_stage(**shared)
    assert stage.dataset[0]["text"].shape == (3, WIDTH)


# ---------------------------------------------------------------- what is refused


def test_data_without_captions_are_refused_before_any_network_is_loaded(
    train2: Train,
    classes: Path,
    captioned: Path,
    make_stage: Callable[..., Stage2],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    nothing = {"text_encoder": "/no/such", "pretrained_autoencoder": "/no/such"}
    assert train2(tmp_path / "run", **nothing, train_data_dir=classes) == 1
    words = "error: --text_encoder needs captions, got none in the column 'caption' of --train_data_dir"
    assert words in capfd.readouterr().err
    make_stage(cache_latents=True)
    stored = {"latent_dataset": tmp_path / "latents", "train_data_dir": None}
    assert train2(tmp_path / "run", **nothing, **stored) == 1
    assert "got none in the column 'caption' of --latent_dataset" in capfd.readouterr().err


def test_a_model_of_captions_needs_an_encoder(train2: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train2(tmp_path / "run", base_config={"cross_attention_dim": 8}) == 1
    assert "is for a model of captions, which needs --text_encoder or --text_encoder_config." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_encoder": "/no/such"}, "--text_encoder /no/such can't be loaded"),
        ({"base_config": {"cross_attention_dim": 8}}, "must have the cross_attention_dim of the latents and of"),
    ],
)
def test_what_does_not_fit_the_text_is_one_sentence(
    train2: Train,
    options: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    assert train2(tmp_path / "run", **{**options, **changes}) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_text_tokens": 3}, "--max_text_tokens needs --text_encoder"),
        ({"cache_text_embeddings": True}, "--cache_text_embeddings needs --text_encoder"),
        ({"text_encoder": "x", "text_embeddings_dir": "y"}, "--text_embeddings_dir needs --cache_text_embeddings"),
        ({"text_encoder": "x", "caption_dropout": 1.0}, "--caption_dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_flags_that_need_others_say_so(
    train2: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train2(tmp_path, **changes)
    assert exit_.value.code == 2
    assert words in capfd.readouterr().err
