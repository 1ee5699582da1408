"""Figures that are ratios of two means, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from ul_tokenizer.evaluation.figures import mean_figure, ratio_figure


def test_a_ratio_is_that_of_the_means_and_its_interval_that_of_resampled_ratios() -> None:
    random = np.random.default_rng(0)
    sources = random.uniform(1, 50, 200)
    values = sources * random.uniform(0.4, 0.8, 200)
    groups = np.arange(200)
    figure = ratio_figure(values, sources, groups)
    assert figure["value"] == pytest.approx(values.mean() / sources.mean())
    drawn = random.integers(0, 200, (2000, 200))
    low, high = np.quantile(values[drawn].mean(1) / sources[drawn].mean(1), [0.025, 0.975])
    assert (figure["low"], figure["high"]) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))
    alone = mean_figure(values / sources.mean(), groups)  # as if the originals' mean were known
    assert figure["high"] - figure["low"] < 0.5 * (alone["high"] - alone["low"])


def test_values_in_proportion_have_an_interval_of_no_width() -> None:
    sources = np.array([1.0, 5.0, 30.0, 2.0])
    figure = ratio_figure(0.5 * sources, sources, np.arange(4))
    assert [figure[name] for name in ("value", "low", "high")] == pytest.approx([0.5, 0.5, 0.5])


def test_flat_originals_and_results_that_are_not_finite_have_no_ratio() -> None:
    groups = np.arange(2)
    flat = ratio_figure(np.array([1.0, 2.0]), np.zeros(2), groups)
    assert flat["value"] is None and flat["reason"] == "the originals are flat."
    broken = ratio_figure(np.array([np.nan, 2.0]), np.ones(2), groups)
    assert broken["value"] is None and "not finite" in broken["reason"]
