import torch

from ul_tokenizer.latents.statistics import ChannelStatistics, channel_statistics


def test_merged_statistics_are_those_of_all_samples_whatever_the_batches() -> None:
    torch.manual_seed(0)
    latents = torch.randn(10, 3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1e3
    flat = latents.transpose(0, 1).flatten(1)
    for sizes in ([10], [1, 9], [3, 3, 4]):
        statistics = channel_statistics(list(latents.split(sizes)))
        torch.testing.assert_close(statistics.mean, flat.mean(1))
        torch.testing.assert_close(statistics.std, flat.std(1, correction=0))
        torch.testing.assert_close(torch.tensor(statistics.overall_std).double(), flat.std(correction=0))


def test_a_large_mean_in_fp32_does_not_cancel() -> None:
    latents = torch.full((2, 1, 8, 8), 1e4)
    latents[:, :, ::2] += 0.01  # representable to about 0.001 there
    assert abs(float(ChannelStatistics.of(latents).std) - 0.005) < 1e-3


def test_the_config_normalises_latents_to_zero_mean_and_unit_variance() -> None:
    torch.manual_seed(0)
    latents = torch.randn(64, 4, 8, 8) * 3 + 2
    config = channel_statistics([latents]).to_config()
    shift, scale = config["shift_factor"], config["scaling_factor"]
    assert isinstance(shift, float)
    assert isinstance(scale, float)
    normalised = (latents - shift) * scale
    assert abs(float(normalised.mean())) < 1e-3
    assert abs(float(normalised.std()) - 1) < 1e-3
    for name in ("latents_mean", "latents_std"):
        values = config[name]
        assert isinstance(values, list) and len(values) == 4


def test_a_dead_channel_normalises_to_zeros_and_not_to_nan() -> None:
    config = channel_statistics([torch.zeros(2, 3, 4, 4)]).to_config()
    assert config["latents_std"] == [1e-6] * 3
    assert config["scaling_factor"] == 1e6
