"""A text encoder of `transformers` as a model of diffusers, so that checkpoints, averages and FSDP treat it as all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ul_tokenizer.decorators import register_to_config
from ul_tokenizer.training.engine.saved import read_weights
from ul_tokenizer.training.fresh_text import build_text_model, json_safe
from ul_tokenizer.training.text import TextEncoder, TextStates, TextTokens


class TrainedTextEncoder(ModelMixin, ConfigMixin):
    """A text encoder that is trained; pipelines hold its `encoder` alone.

    Args:
        text_config: all of the encoder's config, with its model_type.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, text_config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = build_text_model(text_config)
        self.register_state_dict_post_hook(_drop_tied_weights)

    @classmethod
    def of(cls, text: TextEncoder) -> TrainedTextEncoder:
        """A model with the encoder of a text encoder itself, not a copy."""
        with torch.device("meta"):
            model = cls(text_config=json_safe(text.model.config))  # by its name, or diffusers takes it for a default
        model.encoder = text.model
        return model

    @classmethod
    def read(cls, folder: Path, weights: Mapping[str, Tensor] | None = None) -> TrainedTextEncoder:
        """The model of a checkpoint, in evaluation mode; `from_pretrained` would miss weights that the encoder shares.

        Args:
            folder: the model's folder in the checkpoint.
            weights: in place of those in the folder.
        """
        model: TrainedTextEncoder = cls.from_config(cls.load_config(folder))
        model.load_state_dict(read_weights(folder) if weights is None else weights)
        return model.eval()

    def forward(self, tokens: TextTokens) -> TextStates:
        """Encodes tokens, with a gradient."""
        # Rows without any token attend to all positions: attention to nothing has no value.
        attended = tokens.mask | ~tokens.mask.any(dim=1, keepdim=True)
        output = self.encoder(input_ids=tokens.ids, attention_mask=attended.long())
        return tokens.states(output.last_hidden_state.masked_fill(~tokens.mask[..., None], 0))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; weights that the encoder shares need to be there once only."""
        tied = {name: state_dict[first] for name, first in _tied_weights(self).items() if first in state_dict}
        return super().load_state_dict({**tied, **state_dict}, strict=strict, assign=assign)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Recomputes the encoder's blocks in the backward pass, in the way of `transformers`."""
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the second one until 5.22
        next(getattr(self.encoder, name) for name in names if hasattr(self.encoder, name))()

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles nothing: lengths of texts change from step to step."""


def text_encoder_in(models: Mapping[str, ModelMixin]) -> TrainedTextEncoder | None:
    """The trained text encoder among the models of a stage."""
    return cast("TrainedTextEncoder | None", models.get("text_encoder"))


def _tied_weights(model: TrainedTextEncoder) -> dict[str, str]:
    """Further name → first name, of weights that several places share, as in T5."""
    first: dict[int, str] = {}
    tied = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(weight), name) != name:
            tied[name] = first[id(weight)]
    return tied


def _drop_tied_weights(model: TrainedTextEncoder, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Keeps each weight once, as files do."""
    for name in _tied_weights(model):
        state.pop(prefix + name, None)
