"""`push_to_hub` of our models, scheduler and pipeline: one commit, with a card that says something."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ul_tokenizer.hub.upload import Target, push, repository_files
from ul_tokenizer.publish.card_merge import Card, card_maker
from ul_tokenizer.publish.cards import CARD, class_name, model_card
from ul_tokenizer.publish.stubs import stubs

_OF_PUSH = ("commit_message", "private", "token", "create_pr", "subfolder", "revision", "license")


class PushToHubMixin:
    """Takes the place of diffusers' mixin of this name; stands before the host's class among the bases."""

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
        """As diffusers' `save_pretrained`; on request the hub gets the same.

        Args:
            save_directory: folder, made if need be.
            safe_serialization: must be True.
            variant: in the names of weights, e.g. "fp16".
            max_shard_size: of a file of weights; e.g. "2GB".
            push_to_hub: whether to push, to `repo_id` (the folder's name where it isn't given).
            **kwargs: of diffusers, and of `push_to_hub`.

        Returns:
            the commit's sha, if it was pushed.

        Raises:
            ValueError: pickled weights are asked for.
            HubError: what the hub says.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be True, got False: pickled weights are not written.")
        options = {name: kwargs.pop(name) for name in (*_OF_PUSH, "repo_id") if push_to_hub and name in kwargs}
        chosen = {"variant": variant, "max_shard_size": max_shard_size}
        if "Scheduler" not in type(self).__name__:  # whose config is all
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
            repo_id: owner/name, or a name of one's own; made if need be.
            commit_message: None for "Upload" and the name.
            private: for a repository that is made by this; None is the owner's default.
            token: None for the stored one.
            create_pr: make a pull request of it.
            safe_serialization: must be True.
            variant: in the names of weights, e.g. "fp16".
            subfolder: in the repository; no card is written then.
            revision: a branch, made if need be.
            max_shard_size: of a file of weights, e.g. "2GB".
            license: the hub's identifier, for the card, e.g. "apache-2.0"; None says nothing.

        Returns:
            the commit's sha.

        Raises:
            HubError: no access, no network, or what else the hub says; one sentence.
        """
        target = Target(repo_id, "model", revision, subfolder, private, create_pr, commit_message, token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(
                folder, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            files: dict[str, Path | bytes] = {**repository_files(folder), **stubs(folder)}
            make_card = None if subfolder else card_maker(lambda full_id: model_card(folder, full_id, license))
            return push(target, files, make_card)


def push_folder(folder: Path, target: Target, licence: str | None = None) -> str:
    """Pushes a model's folder as it lies on the disk, of a training for example, with its own card if it has one.

    Raises:
        ValueError: no model in it.
        HubError: what the hub says.
    """
    if not class_name(folder):
        raise ValueError(f"Folder {folder} holds no model: there is no config.json or model_index.json in it.")
    files: dict[str, Path | bytes] = {**repository_files(folder), **stubs(folder)}
    files.pop(CARD, None)

    def make_card(repo_id: str) -> Card:
        own = folder / CARD
        if own.is_file():
            return Card.parsed(own.read_text(encoding="utf-8"))
        return model_card(folder, repo_id, licence)

    return push(target, files, None if target.subfolder else card_maker(make_card))
