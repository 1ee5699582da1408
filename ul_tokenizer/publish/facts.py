"""What the card of a model says about its class; each class that can be pushed declares it as `card_facts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ul_tokenizer.registration import our_class

_TRAINING = "accelerate launch -m ul_tokenizer.train {stage} --config config.yaml"


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a class whose models can be pushed.

    Args:
        role: what a model of this class is, as the start of a sentence.
        usage: Python code that loads and uses a model; `{repo_id}` stands for its repository.
        pipeline_tag: the hub's word for the task; None for no task.
        tags: further tags of the repository.
        config_facts: key of the config → label in the card's table, for what users ask first.
        training_stage: subcommand of `python -m ul_tokenizer.train` that trains such a model; None for no training.
        has_weights: whether `save_pretrained` writes weights, and so takes `variant` and `max_shard_size`.
    """

    role: str
    usage: str
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    config_facts: Mapping[str, str] = field(default_factory=dict)
    training_stage: str | None = None
    has_weights: bool = True

    @property
    def training_command(self) -> str | None:
        """The command that repeats the training with the arguments in the card."""
        return None if self.training_stage is None else _TRAINING.format(stage=self.training_stage)


def facts_of(class_name: str) -> ModelFacts | None:
    """The facts of one of our classes by its name in a saved config; None for any other class."""
    cls = our_class(class_name)
    if cls is None:
        return None
    facts: ModelFacts = cls.card_facts
    return facts
