"""Errors of a training run."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot continue; the message is one sentence for the user."""
