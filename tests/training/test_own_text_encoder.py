"""Text encoders of one's own: made of captions, trained along or frozen, saved, resumed, and what they are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import SMALLEST_BASE
from tests.training.process_group import Run, train_together
from tests.training.test_text import NAMES, captioned, encoder
from ul_tokenizer import UnifiedLatentsPipeline
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.engine.saved import SavedModel, check_shapes, read_weights
from ul_tokenizer.training.fresh_text import build_text_model, full_config, json_of, make_tokenizer, wrapped
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.text import TextEncoder, TextTokens
from ul_tokenizer.training.trained_text import TrainedTextEncoder

__all__ = ["captioned", "encoder"]  # fixtures
ROOT = Path(__file__).parents[2]
Train = Callable[..., int]
Weights = Callable[[Path], dict[str, Tensor]]
TINY: dict[str, Any] = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 8}
CAPTIONS = ["a red apple", "a green apple", "a Müller-Thurgau grape", "red hearts", None, "", "two red hearts"]


@pytest.fixture
def options(captioned: Path) -> dict[str, Any]:
    return {"text_encoder_config": TINY, "train_data_dir": captioned}


# ---------------------------------------------------------------- the tokenizer


def test_words_of_the_captions_are_tokens_of_their_own_whatever_their_case_and_accents() -> None:
    tokenizer = make_tokenizer(CAPTIONS, 200)
    assert tokenizer.tokenize("Red  APPLE") == ["▁red", "▁apple"]
    assert tokenizer.tokenize("a muller-thurgau grape") == tokenizer.tokenize(" a Müller-Thurgau\ngrape ")
    assert tokenizer("red apple").input_ids[0] == tokenizer.cls_token_id and tokenizer.pad_token_id == 0


def test_unknown_words_are_split_and_unknown_scripts_are_one_unknown_token() -> None:
    tokenizer = make_tokenizer(CAPTIONS, 200)
    assert "".join(tokenizer.tokenize("reapple")).replace("▁", "") == "reapple"
    assert tokenizer.tokenize("apple 苹果").count("[UNK]") == 1
    assert tokenizer.tokenize("apple 苹果")[0] == "▁apple"


@pytest.mark.parametrize("vocab_size", [12, 40, 200])
def test_a_vocabulary_has_at_most_its_size(vocab_size: int) -> None:
    captions = [*CAPTIONS, "".join(map(chr, range(0x4E00, 0x4E80)))]  # 128 characters of another script
    assert len(make_tokenizer(captions, vocab_size)) <= vocab_size


def test_every_process_makes_the_same_tokenizer(tmp_path: Path) -> None:
    pages = ("gpus-and-clusters.md", "evaluate.md")
    text = " ".join((ROOT / "docs" / "how-to" / name).read_text(encoding="utf-8") for name in pages)
    captions = text.splitlines() + text.split(". ")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    code = (
        "import sys, json; from ul_tokenizer.training.fresh_text import *; "
        "print(json_of(make_tokenizer(json.load(open(sys.argv[1])), 500)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "captions.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    here = make_tokenizer(captions, 500)
    assert json.loads(other) == json.loads(json_of(here))
    assert wrapped(json_of(here)).get_vocab() == here.get_vocab()


# ---------------------------------------------------------------- the model


def made(config: dict[str, Any], is_trained: bool = True) -> TextEncoder:
    tokenizer = make_tokenizer(CAPTIONS, 100)
    torch.manual_seed(0)
    return TextEncoder(build_text_model(full_config(config, len(tokenizer))), tokenizer, 8, is_trained)


KINDS: dict[str, dict[str, Any]] = {
    "distilbert": TINY,
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "clip_text_model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_of_any_kind_gets_a_gradient(kind: str) -> None:
    text = made({"model_type": kind, **KINDS[kind]})
    model = TrainedTextEncoder.of(text)
    states = model(text.tokens(["a red apple", "red", None, "  "]))
    assert states.mask.sum(1).tolist() == [4, 2, 0, 0] and not states.states[2:].any()
    (states.states * torch.randn(states.states.shape)).sum().backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None or not weight.grad.isfinite().all()] == []
    assert all("pooler" in name for name, weight in model.named_parameters() if not weight.requires_grad)
    torch.testing.assert_close(states.states[:2], text(["a red apple", "red"]).states)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_checkpoint_make_the_same_encoder(kind: str, tmp_path: Path) -> None:
    text = made({"model_type": kind, **KINDS[kind]})
    model = TrainedTextEncoder.of(text)
    SavedModel.of(model, model.state_dict()).write(tmp_path / "text_encoder")
    check_shapes("text_encoder", model.state_dict(), read_weights(tmp_path / "text_encoder"))
    expected = model.eval()(text.tokens(["a red apple"])).states
    loaded = TrainedTextEncoder.read(tmp_path / "text_encoder")
    torch.testing.assert_close(loaded(text.tokens(["a red apple"])).states, expected)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    text = made({**TINY, "n_layers": 2})
    model = TrainedTextEncoder.of(text).train()
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(text.tokens(["a red apple"])).states.square().sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# ---------------------------------------------------------------- training


LEARNING: dict[str, Any] = {
    "max_train_steps": 200,
    "learning_rate": 1e-2,
    "ema_decay": 0.9,
    "train_batch_size": 8,
    "cache_latents": True,
    "logging_steps": 50,
}


@pytest.fixture(scope="module")
def trained(
    autoencoder: Path,
    captioned: Path,
    flags: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A pipeline of a base model and a text encoder that were trained together."""
    folder = tmp_path_factory.mktemp("trained")
    paths = {"pretrained_autoencoder": autoencoder, "train_data_dir": captioned, "output_dir": folder}
    assert run_command("base", flags(**{**SMALLEST_BASE, **paths, "text_encoder_config": TINY, **LEARNING})) == 0
    return folder


def mean_distances(pipeline: UnifiedLatentsPipeline, prompt: str, **options: Any) -> list[float]:
    """Of eight samples from the latents of dark and of light pictures."""
    pipeline.set_progress_bar_config(disable=True)
    means = [pipeline.vae.encode(torch.full((1, 3, 16, 16), level)).latent.detach() for level in (-0.84, 0.73)]
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 8, "output_type": "latent", "return_dict": False, **options}
    (z,) = pipeline(prompt=[prompt] * 8, generator=generator, **options)
    return [float((z - mean).square().mean()) for mean in means]


def test_a_fresh_encoder_that_is_trained_along_steers_what_the_saved_pipeline_generates(trained: Path) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained(trained)
    assert type(pipeline.text_encoder).__name__ == "DistilBertModel"
    assert pipeline.transformer.config.cross_attention_dim == pipeline.text_encoder.config.dim == 16
    assert pipeline.tokenizer.model_max_length == 8
    for number, name in enumerate(NAMES):
        for prompt in (f"a {name} picture", f"A {name.upper()}  picture"):
            distances = mean_distances(pipeline, prompt)
            assert distances[number] < distances[1 - number]


def test_a_saved_pipeline_can_be_saved_again(trained: Path, tmp_path: Path) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained(trained)
    pipeline.save_pretrained(tmp_path)
    again = UnifiedLatentsPipeline.from_pretrained(tmp_path)
    assert mean_distances(again, "a dark picture") == mean_distances(pipeline, "a dark picture")


def test_an_unknown_word_does_not_hide_the_known_ones(trained: Path) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained(trained)
    for number, name in enumerate(NAMES):
        distances = mean_distances(pipeline, f"a {name} 图片")
        assert distances[number] < distances[1 - number]


@pytest.mark.parametrize("prompt", ["", "   ", "苹果", "zyx zyx", "\u200b", "\x00", "🍎", "picture " * 100])
def test_any_prompt_works(trained: Path, prompt: str) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    options: Any = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt", "return_dict": False}
    (images,) = pipeline(prompt=prompt, **options)
    assert images.shape == (1, 3, 16, 16) and images.isfinite().all()


def test_an_empty_prompt_is_no_text(trained: Path) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained(trained)
    states, mask = pipeline.encode_prompt(["", " ", "dark"])
    assert mask.any(1).tolist() == [False, False, True] and not states[:2].any()


def test_the_pipeline_has_the_averaged_weights_of_the_encoder(
    train2: Train, weights: Weights, options: dict[str, Any], tmp_path: Path
) -> None:
    assert train2(tmp_path, **options, max_train_steps=3, learning_rate=1e-2, ema_decay=0.5) == 0
    checkpoint = tmp_path / "checkpoint-3"
    raw, averaged = weights(checkpoint / "text_encoder"), weights(checkpoint / "text_encoder_ema")
    saved = UnifiedLatentsPipeline.from_pretrained(tmp_path).text_encoder.state_dict()
    for name, weight in saved.items():
        assert torch.equal(weight, averaged[f"./encoder.{name}"])
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_a_resumed_run_gives_the_weights_of_one_without_a_stop_although_captions_changed(
    train2: Train,
    weights: Weights,
    options: dict[str, Any],
    captioned: Path,
    tmp_path: Path,
) -> None:
    assert train2(tmp_path / "whole", **options, max_train_steps=4) == 0
    assert train2(tmp_path / "parts", **options, max_train_steps=4, checkpointing_steps=2) == 0
    for path in (tmp_path / "parts").glob("checkpoint-4"):
        path.rename(tmp_path / "later")
    stage = json.loads((tmp_path / "parts" / "checkpoint-2" / "trainer_state.json").read_text())["stage"]
    assert "dark" in stage["tokenizer"]
    resume = {"resume_from_checkpoint": "latest"}
    assert train2(tmp_path / "parts", **options, **resume, max_train_steps=4) == 0
    expected = weights(tmp_path / "whole" / "checkpoint-4")
    found = weights(tmp_path / "parts" / "checkpoint-4")
    assert any("text_encoder" in name for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    metadata = captioned / "metadata.jsonl"
    before = metadata.read_text()
    try:
        metadata.write_text(before.replace("picture", "photograph with words that no checkpoint knows"))
        assert train2(tmp_path / "parts", **options, **resume, max_train_steps=5) == 0
    finally:
        metadata.write_text(before)


def test_a_frozen_fresh_encoder_keeps_its_first_weights_and_can_be_cached(
    train2: Train, options: dict[str, Any], tmp_path: Path
) -> None:
    frozen = {**options, "train_text_encoder": False, "cache_text_embeddings": True, "learning_rate": 1e-2}
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train2(tmp_path / run, **frozen, seed=seed) == 0
    assert not (tmp_path / "a" / "checkpoint-2" / "text_encoder").exists()
    a, b, c = (UnifiedLatentsPipeline.from_pretrained(tmp_path / run).text_encoder.state_dict() for run in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_loaded_encoder_is_trained_if_asked_for(
    train2: Train,
    trained: Path,
    captioned: Path,
    tmp_path: Path,
) -> None:
    before = UnifiedLatentsPipeline.from_pretrained(trained)
    loaded = {
        "text_encoder": trained,
        "text_encoder_subfolder": "text_encoder",
        "train_data_dir": captioned,
        "pretrained_model_name_or_path": trained,
    }
    assert train2(tmp_path / "frozen", **loaded, learning_rate=1e-2) == 0
    assert train2(tmp_path / "trained", **loaded, learning_rate=1e-2, train_text_encoder=True) == 0
    old = before.text_encoder.state_dict()
    for run, is_same in (("frozen", True), ("trained", False)):
        pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path / run)
        new = pipeline.text_encoder.state_dict()
        assert all(torch.equal(old[name], new[name]) for name in old) == is_same
        assert pipeline.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_validation_uses_what_the_encoder_has_learned(
    make_stage: Callable[..., Stage2], options: dict[str, Any]
) -> None:
    stage = make_stage(**options)
    with torch.no_grad():  # at the start, many weights are zero and no caption could matter
        for parameter in stage.transformer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    losses = []
    for factor in (1.0, -2.0):
        with torch.no_grad():
            for weight in stage.models["text_encoder"].parameters():
                weight.mul_(factor)
        losses.append(stage.validate(make_accelerator(stage.args), 0)[0]["loss"])
    assert losses[0] != losses[1]


def test_tokens_are_made_unknown_and_captions_dropped_by_the_draw_alone(
    make_stage: Callable[..., Stage2], options: dict[str, Any]
) -> None:
    stage = make_stage(**options, token_dropout=0.25, caption_dropout=0.25)
    assert stage.text is not None
    unknown, start = stage.text.tokenizer.unk_token_id, stage.text.tokenizer.cls_token_id
    counts, dropped = [], []
    for step in range(300):
        of_step = range(4 * step, 4 * step + 4)
        whole = stage._text_of({"captions": ["light picture"] * 4}, Draws(step, of_step, of_step))
        half = stage._text_of({"captions": ["light picture"] * 2}, Draws(step, of_step, of_step[1::2]))
        assert isinstance(whole, TextTokens) and isinstance(half, TextTokens)
        assert torch.equal(whole.ids[1::2], half.ids) and torch.equal(whole.has_text[1::2], half.has_text)
        assert (whole.ids[:, 0] == start).all()
        counts += (whole.ids[:, 1:] == unknown).flatten().tolist()
        dropped += (~whole.has_text).tolist()
    assert 0.2 < sum(counts) / len(counts) < 0.3 and 0.2 < sum(dropped) / len(dropped) < 0.3


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(
    train2: Train,
    run_flags: Callable[..., list[str]],
    options: dict[str, Any],
    weights: Weights,
    tmp_path: Path,
) -> None:
    run = {**options, "adam_epsilon": 1e-2, "cache_latents": True}
    assert train2(tmp_path / "a", **run) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "ul_tokenizer.train", "base", *run_flags(tmp_path / "b", **run, train_batch_size=2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / name / "checkpoint-2" / "text_encoder") for name in "ab")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_divided_weights_give_the_encoder_of_whole_ones(
    run_flags: Callable[..., list[str]], options: dict[str, Any], weights: Weights, tmp_path: Path
) -> None:
    run = {**options, "adam_epsilon": 1e-2, "train_batch_size": 2, "validation_steps": 1}
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    whole = Run(run_flags(tmp_path / "whole", **run), target="base")
    divided = Run(run_flags(tmp_path / "divided", **run), environment=fsdp, target="base")
    for of_run in train_together(tmp_path / "group", 2, whole, divided):
        assert [outcome.status for outcome in of_run] == [0, 0], of_run[0].error[-3000:]
    for folder in ("checkpoint-2/text_encoder", "checkpoint-2/text_encoder_ema", "text_encoder"):
        expected, found = (weights(tmp_path / name / folder) for name in ("whole", "divided"))
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_encoder_config": {"sise": 3}}, "--text_encoder_config of the model_type distilbert has no key 'sise'."),
        ({"text_encoder_config": {"model_type": "no"}}, "must have a model_type of transformers, got 'no'."),
        ({"text_encoder_config": {"model_type": 3}}, "must have a text as model_type, got 3."),
        ({"text_encoder_config": {**TINY, "n_heads": 3}}, "--text_encoder_config gives no text encoder: "),
        ({"text_encoder_config": {**TINY, "dim": "x"}}, "--text_encoder_config is illegal: "),
        ({"text_encoder_config": {"vocab_size": 0}}, "must have a positive number as vocab_size, got 0."),
        ({"max_text_tokens": 9}, "--max_text_tokens must be at most 8 for this text encoder, got 9."),
    ],
)
def test_what_makes_no_encoder_is_one_sentence(
    train2: Train,
    options: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    assert train2(tmp_path / "run", **{**options, **changes}) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last and last.endswith(".")


def test_pictures_without_captions_are_refused(
    train2: Train, classes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train2(tmp_path / "run", text_encoder_config={}, train_data_dir=classes) == 1
    assert "error: --text_encoder_config needs captions, got none in the column 'caption'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_text_encoder": True}, "--train_text_encoder needs --text_encoder or --text_encoder_config"),
        ({"text_encoder": "x", "text_encoder_config": {}}, "--text_encoder and --text_encoder_config exclude each"),
        ({"text_encoder_config": {}, "cache_text_embeddings": True}, "--cache_text_embeddings needs a frozen text"),
        ({"text_encoder_config": {}, "token_dropout": 1.0}, "--token_dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_flags_that_need_others_say_so(
    train2: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train2(tmp_path, **changes)
    assert exit_.value.code == 2 and words in capfd.readouterr().err
