"""Classes, texts and given frames as conditions of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

SEED = torch.Generator().manual_seed(0)
Z = torch.randn(3, 4, 4, 4, generator=SEED)
CLIP = torch.randn(3, 4, 2, 4, 4, generator=SEED)
GIVEN = torch.randn(3, 4, 3, 4, 4, generator=SEED)
TEXT = torch.randn(3, 5, 6, generator=SEED)
LOGSNR = torch.tensor([-2.0, 0.0, 3.0])
LABELS = torch.tensor([0, 2, 1])
NULL = 3


def make(**config: Any) -> UnifiedLatentsTransformer:
    """A two-stage model whose weights are all away from zero."""
    torch.manual_seed(0)
    tiny = {"in_channels": 4, "block_out_channels": (32, 64), "num_layers": (2, 1), "attention_head_dim": 16}
    model = UnifiedLatentsTransformer(**{**tiny, "embedding_channels": 16, **config})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def classes() -> UnifiedLatentsTransformer:
    return make(num_class_embeds=NULL)


@pytest.fixture(scope="module")
def text() -> UnifiedLatentsTransformer:
    return make(cross_attention_dim=6)


@pytest.fixture(scope="module")
def context() -> UnifiedLatentsTransformer:
    return make(context_conditioning=True)


@torch.no_grad()
def run(model: UnifiedLatentsTransformer, sample: Tensor = Z, **conditions: Any) -> Tensor:
    v: Tensor = model(sample, LOGSNR, **conditions).sample
    assert v.shape == sample.shape
    return v


def differs(a: Tensor, b: Tensor) -> list[bool]:
    """Per sample, whether it changed by more than rounding."""
    return [not torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(a, b, strict=True)]


# ---------------------------------------------------------------- classes


def test_a_class_steers_its_own_sample_alone(classes: UnifiedLatentsTransformer) -> None:
    one = run(classes, class_labels=LABELS)
    other = run(classes, class_labels=torch.tensor([0, 1, 1]))
    assert differs(one, other) == [False, True, False]


def test_no_class_is_the_learned_null_label(classes: UnifiedLatentsTransformer) -> None:
    assert classes.null_class_label == NULL
    torch.testing.assert_close(run(classes), run(classes, class_labels=torch.full((3,), NULL)))
    assert differs(run(classes), run(classes, class_labels=LABELS)) == [True] * 3


def test_the_null_label_is_trained_where_it_is_used(classes: UnifiedLatentsTransformer) -> None:
    classes.zero_grad()
    classes(Z, LOGSNR, class_labels=torch.tensor([0, NULL, 0])).sample.square().sum().backward()
    gradient = classes.class_embedding.table.weight.grad
    assert gradient is not None
    used = gradient.abs().sum(1) > 0
    assert used.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 4, 1]), "class_labels must be from 0 to 3, where the last is the null label, got 4"),
        (torch.tensor([0, -1, 1]), "class_labels must be from 0 to 3, where the last is the null label, got -1"),
        (torch.tensor([0, 1]), r"class_labels must be \(3,\) integers, one per sample, got \(2,\) torch.int64"),
        (torch.tensor([0.0, 1.0, 1.0]), r"integers, one per sample, got \(3,\) torch.float32"),
        (torch.tensor(1), r"class_labels must be \(3,\) integers, one per sample, got \(\) torch.int64"),
    ],
)
def test_stray_labels_are_refused(classes: UnifiedLatentsTransformer, labels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(classes, class_labels=labels)


# ---------------------------------------------------------------- text


def test_a_text_steers_its_own_sample_alone(text: UnifiedLatentsTransformer) -> None:
    changed = TEXT.clone()
    changed[1, 2, 0] += 3
    assert differs(run(text, encoder_hidden_states=TEXT), run(text, encoder_hidden_states=changed)) == [
        False,
        True,
        False,
    ]


def test_padding_is_not_read(text: UnifiedLatentsTransformer) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3).bool()
    short = run(text, encoder_hidden_states=TEXT[:, :3])
    torch.testing.assert_close(run(text, encoder_hidden_states=TEXT, encoder_attention_mask=mask), short)
    torch.testing.assert_close(run(text, encoder_hidden_states=TEXT, encoder_attention_mask=mask.long()), short)


def test_texts_without_padding_need_no_mask(text: UnifiedLatentsTransformer) -> None:
    embed = text.text_embedding
    with torch.no_grad():
        assert embed(None, None, 3).mask is None
        assert embed(TEXT, None, 3).mask is None
        masked = run(text, encoder_hidden_states=TEXT, encoder_attention_mask=torch.ones(3, 5))
        torch.testing.assert_close(run(text, encoder_hidden_states=TEXT), masked)


def test_the_token_for_no_text_is_part_of_every_step_of_training(text: UnifiedLatentsTransformer) -> None:
    """DDP waits for the gradient of every parameter."""
    tokens = text.text_embedding(TEXT, None, 3).tokens
    torch.autograd.grad(tokens.sum(), text.text_embedding.null_token)  # an error if it is unused


def test_a_mask_without_a_token_is_no_text(text: UnifiedLatentsTransformer) -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    some = run(text, encoder_hidden_states=TEXT, encoder_attention_mask=mask)
    torch.testing.assert_close(some[1], run(text)[1])
    assert differs(run(text), run(text, encoder_hidden_states=TEXT)) == [True] * 3


def test_a_fresh_models_text_adds_nothing_so_that_a_trained_model_can_be_given_one() -> None:
    torch.manual_seed(0)
    model = UnifiedLatentsTransformer(
        in_channels=4, block_out_channels=(32,), num_layers=(2,), attention_head_dim=16, cross_attention_dim=6
    )
    torch.nn.init.normal_(model.conv_out.weight)
    torch.testing.assert_close(run(model, encoder_hidden_states=TEXT), run(model))


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"encoder_hidden_states": TEXT[:2]}, r"encoder_hidden_states must be \(3, L, 6\), got \(2, 5, 6\)"),
        ({"encoder_hidden_states": TEXT[..., :5]}, r"encoder_hidden_states must be \(3, L, 6\), got \(3, 5, 5\)"),
        (
            {"encoder_hidden_states": TEXT, "encoder_attention_mask": torch.ones(3, 4)},
            r"encoder_attention_mask must be \(3, 5\), got \(3, 4\)",
        ),
        ({"encoder_attention_mask": torch.ones(3, 4)}, "encoder_attention_mask must be None without"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    text: UnifiedLatentsTransformer, conditions: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(text, **conditions)


# ---------------------------------------------------------------- given frames


def test_given_frames_steer_their_own_sample_alone_and_are_not_predicted(context: UnifiedLatentsTransformer) -> None:
    changed = GIVEN.clone()
    changed[1, :, 0] += 1
    one, other = run(context, CLIP, context_latents=GIVEN), run(context, CLIP, context_latents=changed)
    assert differs(one, other) == [False, True, False]
    assert differs(one, run(context, CLIP)) == [True] * 3


def test_any_number_of_frames_can_be_given_and_their_order_counts(context: UnifiedLatentsTransformer) -> None:
    run(context, CLIP, context_latents=GIVEN[:, :, :1])
    reversed_ = run(context, CLIP, context_latents=GIVEN.flip(2))
    assert differs(reversed_, run(context, CLIP, context_latents=GIVEN)) == [True] * 3


def test_an_image_can_continue_given_frames(context: UnifiedLatentsTransformer) -> None:
    assert differs(run(context, Z, context_latents=GIVEN), run(context, Z)) == [True] * 3


@pytest.mark.parametrize("given", [GIVEN[:2], GIVEN[:, :2], GIVEN[..., :2], GIVEN[:, :, 0], GIVEN[:, :, :0], Z.long()])
def test_frames_that_do_not_fit_are_refused(context: UnifiedLatentsTransformer, given: Tensor) -> None:
    with pytest.raises(ValueError, match=r"context_latents must be floats \(3, 4, t, 4, 4\) with at least one frame"):
        run(context, CLIP, context_latents=given)


# ---------------------------------------------------------------- all of them

EVERYTHING = {"num_class_embeds": NULL, "cross_attention_dim": 6, "context_conditioning": True}


def everything(**changes: Any) -> dict[str, Any]:
    conditions = {"class_labels": LABELS, "encoder_hidden_states": TEXT, "context_latents": GIVEN}
    return {**conditions, "encoder_attention_mask": torch.ones(3, 5), **changes}


def test_all_conditions_together_survive_saving(tmp_path: Path) -> None:
    model = make(**EVERYTHING)
    model.save_pretrained(tmp_path)
    loaded = UnifiedLatentsTransformer.from_pretrained(tmp_path)
    torch.testing.assert_close(run(loaded, CLIP, **everything()), run(model, CLIP, **everything()), rtol=0, atol=0)


def test_fused_projections_of_a_text_change_nothing() -> None:
    model = make(**EVERYTHING)
    plain = run(model, CLIP, **everything())
    model.fuse_qkv_projections()
    block: Any = model.mid_stage.blocks[0]
    assert block.cross_attn.fused_projections
    torch.testing.assert_close(run(model, CLIP, **everything()), plain, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients_with_conditions() -> None:
    model = make(**EVERYTHING)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(CLIP, LOGSNR, **everything()).sample.square().sum().backward()
        grads = [(name, parameter.grad) for name, parameter in model.named_parameters()]
        assert [name for name, grad in grads if grad is None] == []
        return [grad.clone() for _, grad in grads if grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32_at_every_level(dtype: torch.dtype) -> None:
    model = make(**EVERYTHING)
    exact = run(model, CLIP, **everything())
    half = make(**EVERYTHING).to(dtype)
    assert half(CLIP, LOGSNR, **everything()).sample.dtype == torch.float32
    assert (run(half, CLIP, **everything()) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("config", [{"num_class_embeds": 0}, {"num_class_embeds": 10**12}, {"cross_attention_dim": -1}])
def test_hostile_conditions_are_refused_before_anything_is_allocated(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be an integer from 1 to 65536"):
        make(**config)
