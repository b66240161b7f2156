"""Inundation (AIT): the share of weights that turns over, and what a step keeps."""

import pytest
import torch

from nni_autorecon.accel.optimizers import sgd
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import WeightQuantizer
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.student.inundation import flipping_factor, inundation
from tests.helpers.toys import SmallResNet, snapshot


def test_the_factor_is_the_one_at_which_the_share_turns_over():
    codes = torch.tensor([1.0, 1.2, 2.4, 0.0, 3.4])
    update = torch.tensor([0.1, 0.1, 0.1, -0.1, 0.1])  # 5, 3 and 1 times it; the last two are at the ends
    factor = lambda share: flipping_factor(codes, update, share=share, largest_code=3).item()  # noqa: E731
    assert [factor(share) for share in (0.2, 0.4, 0.6, 0.8)] == pytest.approx([1, 3, 5, 1])


def test_a_large_update_is_left_alone_and_none_at_all_too():
    codes = torch.tensor([1.0, 2.0])
    assert flipping_factor(codes, torch.tensor([2.0, -2.0]), share=0.5, largest_code=3) == 1
    assert flipping_factor(codes, torch.zeros(2), share=0.5, largest_code=3) == 1


def test_inundation_turns_over_the_share_of_every_weight_that_is_quantized():
    torch.manual_seed(0)
    student, _ = quantize_network(SmallResNet(), Quantization("w4a4"))
    weights = {n: p for n, p in student.named_parameters() if n.endswith("weight.original")}
    before = {name: (codes_of(weight), weight.clone()) for name, weight in weights.items()}
    norm = student.get_parameter("stem.1.weight")
    rest = norm.detach().clone()
    with inundation(student, share=0.1), torch.no_grad():
        for parameter in student.parameters():
            parameter += 1e-6 * torch.randn(parameter.shape)
    assert len(weights) == 7
    for name, weight in weights.items():
        codes, old = before[name]
        quantizer = WeightQuantizer(4)
        scale, zero_point = (v.view(-1, *[1] * (old.ndim - 1)) for v in quantizer.qparams(old))
        moved = (weight / scale + zero_point).round().clamp(0, 15) != codes
        assert 0.1 <= moved.float().mean() + 1 / moved.numel() < 0.1 + 3 / moved.numel(), name
    assert (norm - rest).abs().max() < 1e-5


@pytest.mark.parametrize("rate", [1e-3, 1e-7, 1e-12])
def test_inundation_loses_nothing_of_a_step_that_is_small_beside_its_weight(rate):
    torch.manual_seed(0)
    student, _ = quantize_network(SmallResNet(), Quantization("w4a4"))
    weight = student.get_parameter("stem.0.parametrizations.weight.original")
    old, gradient, decay, momentum = weight.detach().clone(), torch.randn(weight.shape), 0.3, 0.9
    optimizer = sgd(student.parameters(), rate, momentum=momentum, weight_decay=decay)
    weight.grad = gradient.clone()
    with inundation(student, share=0.1, decay=decay):
        optimizer.step()
    step = (weight.detach() - old).double()
    exact = -(gradient.double() + decay * old.double()) * (1 + momentum)
    assert torch.cosine_similarity(step.flatten(), exact.flatten(), dim=0) > 1 - 1e-9
    assert (step != 0).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_inundation_that_fails_leaves_every_weight_as_it_was(error):
    student, _ = quantize_network(SmallResNet(), Quantization("w4a4"))
    before = snapshot(student)
    with pytest.raises(error), inundation(student, share=0.1, decay=0.5):  # noqa: PT012
        with torch.no_grad():
            weight = student.get_parameter("stem.0.parametrizations.weight.original")
            assert not weight.any()
            weight += 1.0
        raise error
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def codes_of(weight):
    scale, zero_point = (v.view(-1, *[1] * (weight.ndim - 1)) for v in WeightQuantizer(4).qparams(weight))
    return (weight.detach() / scale + zero_point).round().clamp(0, 15)
