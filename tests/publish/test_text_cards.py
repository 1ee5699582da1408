"""The card of a pipeline with a text encoder says so."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.text_models import WIDTH, WORDS, save_text_encoder
from ul_tokenizer import LogSNRScheduler, UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.models.presets import build_base
from ul_tokenizer.publish.cards import model_card
from ul_tokenizer.training.text import load_text_encoder


def make_pipeline(model: UnifiedLatentsAutoencoder, folder: Path) -> UnifiedLatentsPipeline:
    text = load_text_encoder(str(save_text_encoder(folder / "text")))
    torch.manual_seed(0)
    base = build_base("ul-base-tiny", {"cross_attention_dim": WIDTH, "num_class_embeds": None})
    return UnifiedLatentsPipeline(base, LogSNRScheduler(), model, text.model, text.tokenizer)


def test_a_pipeline_of_texts_has_a_card_with_its_text_encoder(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    pipeline = make_pipeline(model, tmp_path)
    pipeline.save_pretrained(tmp_path / "pipeline")
    card = str(model_card(tmp_path / "pipeline", "tester/texts"))
    assert "| text_encoder: class | `CLIPTextModel` |" in card
    weights = sum(weight.numel() for weight in pipeline.text_encoder.parameters())
    assert f"| text_encoder: weights | {weights / 1e6:.2f} M |" in card
    assert f"| text_encoder: hidden states | {WIDTH} |" in card
    assert f"| text_encoder: vocabulary | {len(WORDS)} |" in card
    assert "| tokenizer: longest text | 8 tokens |" in card
    assert 'image = pipe(prompt="a red apple", guidance_scale=2.0).images[0]' in card
    assert "pipeline_tag: text-to-image" in card


def test_a_pipeline_without_texts_has_a_card_without_them(pipeline: UnifiedLatentsPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    card = str(model_card(tmp_path, "tester/images"))
    assert "text_encoder" not in card and "image = pipe().images[0]" in card
    assert "pipeline_tag: unconditional-image-generation" in card
