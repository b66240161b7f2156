"""The relaxation: sampling frequencies, straight-through, temperatures."""

import math

import pytest
import torch

from nni_autorecon.config.search import TEMPERATURES
from nni_autorecon.nas.gumbel import gumbel_softmax, temperature_at

DRAWS = 20_000


def _frequencies(alpha, relaxation):
    torch.manual_seed(0)
    m = gumbel_softmax(alpha.expand(DRAWS, -1), temperature=1.0, relaxation=relaxation)
    return torch.bincount(m.argmax(-1), minlength=alpha.numel()) / DRAWS


def _tolerance(p):
    return 4 * math.sqrt(p * (1 - p) / DRAWS)  # four standard deviations of a binomial share


@pytest.mark.parametrize(("candidates", "share"), [(7, 0.31), (3, 0.58), (2, 0.73)])
def test_eq_7_hardly_listens_to_a_decided_alpha(candidates, share):
    alpha = torch.full((candidates,), -50.0)
    alpha[1] = 50.0  # p = (0, 1, 0, ...)
    expected = math.e / (math.e + candidates - 1)
    assert expected == pytest.approx(share, abs=0.005)
    assert _frequencies(alpha, "paper")[1] == pytest.approx(expected, abs=_tolerance(expected))


@pytest.mark.parametrize("relaxation", ["paper", "logits"])
def test_the_winner_has_the_distribution_of_its_scores(relaxation):
    alpha = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7])
    p = alpha.softmax(-1)
    expected = p if relaxation == "logits" else p.softmax(-1)
    for frequency, share in zip(_frequencies(alpha, relaxation), expected, strict=True):
        assert frequency == pytest.approx(share.item(), abs=_tolerance(share.item()))


def test_weights_are_a_distribution_and_sharpen_as_the_temperature_falls():
    alpha = torch.randn(500, 5)
    peaks = []
    for temperature in (5.0, 1.0, 0.1):
        m = gumbel_softmax(alpha, temperature=temperature, relaxation="logits")
        torch.testing.assert_close(m.sum(-1), torch.ones(500))
        peaks.append(m.max(-1).values.mean().item())
    assert peaks[0] < peaks[1] < peaks[2]


def test_hard_samples_are_one_hot_with_the_soft_gradient():
    alpha = torch.randn(7, dtype=torch.double, requires_grad=True)
    probe = torch.arange(7, dtype=torch.double)
    gradients = []
    for hard in (False, True):
        torch.manual_seed(3)
        m = gumbel_softmax(alpha, temperature=0.7, relaxation="logits", hard=hard)
        gradients.append(torch.autograd.grad((m * probe).sum(), alpha)[0])
    assert sorted(m.tolist()) == [0.0] * 6 + [1.0]
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_the_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="positive"):
        gumbel_softmax(torch.zeros(3), temperature=temperature, relaxation="paper")


@pytest.mark.parametrize("schedule", TEMPERATURES)
def test_schedules_run_from_start_to_end(schedule):
    path = [temperature_at(e, 5, start=5.0, end=0.1, schedule=schedule) for e in range(5)]
    assert path[0] == pytest.approx(5.0)
    assert path[-1] == pytest.approx(5.0 if schedule == "constant" else 0.1)
    assert path == sorted(path, reverse=True)
    assert temperature_at(0, 1, start=5.0, end=0.1, schedule=schedule) == pytest.approx(5.0)


def test_the_exponential_schedule_halves_evenly():
    path = [temperature_at(e, 3, start=4.0, end=1.0, schedule="exponential") for e in range(3)]
    assert path == pytest.approx([4.0, 2.0, 1.0])
