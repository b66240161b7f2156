"""The images of a student are smoothed, or moved to where it errs."""

import torch

from nni_autorecon.student.images import low_pass
from nni_autorecon.student.training import hard_samples


def test_a_low_pass_keeps_what_is_constant_and_takes_what_alternates():
    constant, noise = torch.full((2, 3, 7, 9), 0.7), torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(low_pass(constant, sigma=1.5), constant)
    assert low_pass(noise, sigma=1.5).std() < 0.5 * noise.std()
    assert low_pass(noise, sigma=0.0) is noise
    assert low_pass(torch.randn(1, 1, 2, 2), sigma=30.0).shape == (1, 1, 2, 2)


def test_hard_samples_are_a_step_uphill_in_every_pixel():
    images = torch.randn(3, 2, 5, 5)
    hard = hard_samples(images, lambda x: (x * torch.linspace(-1, 1, 50).view(2, 5, 5)).sum(), step=0.1)
    torch.testing.assert_close(
        hard - images, (0.1 * torch.linspace(-1, 1, 50).sign()).view(2, 5, 5).expand(3, -1, -1, -1)
    )
    assert not hard.requires_grad
