"""The conditions of a batch: classes and texts, checked and expanded to one row for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

ClassLabels = int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Conditions:
    """Classes and texts with one row for each image; None if no image has any."""

    batch_size: int
    class_labels: Tensor | None = None  # (B,) int64
    text: Tensor | None = None  # (B, L, D)
    text_mask: Tensor | None = None  # (B, L) bool

    @property
    def is_empty(self) -> bool:
        """Whether no image has a class or a text, so that guidance has no effect."""
        return self.class_labels is None and self.text is None

    def with_null(self, null_label: int | None) -> Conditions:
        """These rows, followed by as many without class and text, for guidance in one pass."""
        labels, text, mask = self.class_labels, self.text, self.text_mask
        if labels is not None:
            assert null_label is not None  # a model with classes has one
            labels = torch.cat([labels, torch.full_like(labels, null_label)])
        if text is not None and mask is not None:
            text, mask = torch.cat([text, text]), torch.cat([mask, torch.zeros_like(mask)])
        return Conditions(2 * self.batch_size, labels, text, mask)

    def model_inputs(self) -> dict[str, Tensor | None]:
        """Arguments of `UnifiedLatentsTransformer`, with the shapes of the fields, (B, …)."""
        return {
            "class_labels": self.class_labels,
            "encoder_hidden_states": self.text,
            "encoder_attention_mask": self.text_mask,
        }


def make_conditions(
    transformer: UnifiedLatentsTransformer,
    class_labels: ClassLabels | None,
    text: tuple[Tensor, Tensor | None] | None,
    num_images_per_prompt: int,
    device: torch.device,
) -> Conditions:
    """Checks classes and texts and expands them; without either it is one image.

    Args:
        transformer: the base model.
        class_labels: one class, or one per image, (N,).
        text: hidden states (N, L, D) and their mask (N, L), true where there is a token.
        num_images_per_prompt: images of each class or text.
        device: where the result is.

    Raises:
        ValueError: the model takes no such condition, a class is out of range, or there are more of one than of the
            other.
    """
    if isinstance(num_images_per_prompt, bool) or num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}.")
    labels = None if class_labels is None else _checked_labels(transformer, class_labels)
    hidden, mask = (None, None) if text is None else _checked_text(transformer, *text)
    sizes = {len(rows) for rows in (labels, hidden) if rows is not None} or {1}
    if len(sizes) > 1:
        raise ValueError(f"class_labels and prompts must have the same number, got {sorted(sizes)}.")

    def expand(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.repeat_interleave(num_images_per_prompt, dim=0).to(device)

    return Conditions(sizes.pop() * num_images_per_prompt, expand(labels), expand(hidden), expand(mask))


def _checked_labels(transformer: UnifiedLatentsTransformer, class_labels: Any) -> Tensor:
    num_classes = transformer.config.num_class_embeds
    _refuse_texts(transformer, class_labels)
    if num_classes is None:
        raise ValueError(f"class_labels must be None for a model without classes, got {class_labels}.")
    labels = torch.as_tensor(class_labels).reshape(-1)
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(labels):
        raise ValueError(f"class_labels must be integers from 0 to {num_classes - 1}, got {class_labels}.")
    stray = labels[(labels < 0) | (labels >= num_classes)]
    if len(stray):
        raise ValueError(f"class_labels must be from 0 to {num_classes - 1}, got {int(stray[0])}.")
    return labels.long()


def _refuse_texts(transformer: UnifiedLatentsTransformer, class_labels: Any) -> None:
    """Texts are no labels, wherever they stand: the first argument of a pipeline means the same for every model."""
    texts = [class_labels] if isinstance(class_labels, str) else class_labels
    if not isinstance(texts, list | tuple) or not any(isinstance(text, str) for text in texts):
        return
    num_classes = transformer.config.num_class_embeds
    legal = "None" if num_classes is None else f"integers from 0 to {num_classes - 1}"
    text = next(text for text in texts if isinstance(text, str))
    has_text = transformer.config.cross_attention_dim is not None
    advice = "pass texts as prompt=" if has_text else "this pipeline has no text conditioning"
    raise ValueError(f"class_labels must be {legal}, got the text {text!r}; {advice}.")


def _checked_text(
    transformer: UnifiedLatentsTransformer, hidden: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    width = transformer.config.cross_attention_dim
    if width is None:
        raise ValueError("prompt and prompt_embeds must be None for a model without text conditioning.")
    if hidden.ndim != 3 or hidden.shape[-1] != width:
        raise ValueError(f"prompt_embeds must be (B, L, {width}), got {tuple(hidden.shape)}.")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"prompt_attention_mask must be {tuple(hidden.shape[:2])}, got {tuple(mask.shape)}.")
    return hidden, mask.bool()
