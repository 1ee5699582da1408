"""`push_to_hub` of our models, scheduler and pipeline, and of folders: one commit with a generated card."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from ul_tokenizer.hub.upload import Target, push
from ul_tokenizer.publish.card_merge import Card, card_reviser
from ul_tokenizer.publish.cards import CARD, model_card
from ul_tokenizer.publish.facts import ModelFacts
from ul_tokenizer.publish.records import class_name
from ul_tokenizer.publish.repository_files import repository_files
from ul_tokenizer.publish.stubs import stubs

_OF_PUSH = ("commit_message", "private", "token", "create_pr", "subfolder", "revision", "license")


class PushToHubMixin:
    """Replaces the mixin of this name in diffusers; it must precede diffusers' classes among the bases.

    Attributes:
        card_facts: what cards say about models of the class.
    """

    card_facts: ClassVar[ModelFacts]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> str | None:
        """Saves to a folder as in diffusers, and pushes to the hub on request.

        Args:
            save_directory: folder, created if needed.
            safe_serialization: must be True.
            variant: part of the names of weight files, e.g. "fp16".
            max_shard_size: largest size of a weight file, e.g. "2GB".
            push_to_hub: whether to push as well, to `repo_id` or, without it, to the folder's name.
            **kwargs: arguments of diffusers' `save_pretrained` and, with `push_to_hub`, of our `push_to_hub`.

        Returns:
            The hash of the commit if the model was pushed, else None.

        Raises:
            ValueError: `safe_serialization` is False.
            HubError: the hub refused the push or can't be reached.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be True, got False: pickled weights are not written.")
        options = {name: kwargs.pop(name) for name in (*_OF_PUSH, "repo_id") if push_to_hub and name in kwargs}
        if self.card_facts.has_weights:
            chosen = {"variant": variant, "max_shard_size": max_shard_size}
            kwargs |= {name: value for name, value in chosen.items() if value is not None}
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        if not push_to_hub:
            return None
        options.setdefault("repo_id", Path(save_directory).resolve().name)
        return self.push_to_hub(**options, variant=variant, max_shard_size=max_shard_size)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        revision: str | None = None,
        max_shard_size: int | str | None = None,
        license: str | None = None,
    ) -> str:
        """Pushes weights, config and a card in one commit.

        Args:
            repo_id: owner/name, or a name below the user's own account; created if needed.
            commit_message: None for "Upload" and the name.
            private: visibility of a repository that the push creates; None for the owner's default.
            token: None for the stored token.
            create_pr: open a pull request instead of committing to the branch.
            safe_serialization: must be True.
            variant: part of the names of weight files, e.g. "fp16".
            subfolder: folder in the repository; no card is written with it.
            revision: a branch, created if needed; None for `main`.
            max_shard_size: largest size of a weight file, e.g. "2GB".
            license: for the card, the hub's identifier, e.g. "apache-2.0"; None for no entry.

        Returns:
            The hash of the commit.

        Raises:
            ValueError: `safe_serialization` is False.
            HubError: the hub refused the push or can't be reached.
        """
        target = Target(repo_id, "model", revision, subfolder, private, create_pr, commit_message, token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(
                folder, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            return push_folder(folder, target, license)


def push_folder(folder: Path, target: Target, license: str | None = None) -> str:
    """Pushes the folder of a model or of a training; its own README.md replaces the generated card.

    Args:
        folder: as `save_pretrained` or a training writes it.
        target: the destination; with a subfolder, no card is pushed.
        license: for a generated card, the hub's identifier, e.g. "apache-2.0"; None for no entry.

    Returns:
        The hash of the commit.

    Raises:
        ValueError: the folder holds no model.
        HubError: the hub refused the push or can't be reached.
    """
    if not class_name(folder):
        raise ValueError(f"Folder {folder} holds no model: there is no config.json or model_index.json in it.")
    files: dict[str, Path | bytes] = {**repository_files(folder), **stubs(folder)}
    files.pop(CARD, None)

    def make_card(repo_id: str) -> Card:
        own = folder / CARD
        if own.is_file():
            return Card.parsed(own.read_text(encoding="utf-8"))
        return model_card(folder, repo_id, license)

    return push(target, files, None if target.subfolder else {CARD: card_reviser(make_card)})
