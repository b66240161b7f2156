"""Papers after GDFQ proposed these: closed forms, references, and what each does to a student or its images."""

import math

import pytest
import torch
from scipy.stats import entropy
from torch import nn
from torch.nn import functional as F

from nni_autorecon.accel.optimizers import sgd
from nni_autorecon.errors import InputError
from nni_autorecon.generator.latent import LatentSource, mixed_labels
from nni_autorecon.generator.operations import embedded
from nni_autorecon.losses.game import adaptability_loss, disagreement_entropy
from nni_autorecon.losses.student import compression_loss, gated_cross_entropy
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import WeightQuantizer, observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.student.features import feature_alignment_loss, with_features
from nni_autorecon.student.images import low_pass
from nni_autorecon.student.inundation import flipping_factor, inundation
from nni_autorecon.student.training import hard_samples
from tests.helpers.toys import SmallResNet, snapshot, toy_teacher

STUDENT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 2])


# AdaDFQ


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_entropy_of_a_disagreement_is_scipys(temperature):
    got = disagreement_entropy(STUDENT, TEACHER, temperature=temperature)
    expected = entropy(((TEACHER - STUDENT) / temperature).softmax(1).numpy(), axis=1)
    torch.testing.assert_close(got, torch.tensor(expected))
    assert got[1].item() == pytest.approx(math.log(3))  # where they agree


def test_a_game_that_is_within_its_margins_has_but_its_two_cross_entropies():
    relaxed = adaptability_loss(STUDENT, TEACHER, LABELS, low=0.0, high=1.0)
    expected = 0.2 * F.cross_entropy(TEACHER - STUDENT, LABELS) + 0.1 * F.cross_entropy(TEACHER + STUDENT, LABELS)
    torch.testing.assert_close(relaxed, expected)


def test_the_game_is_against_agreement_and_against_too_much_disagreement():
    def game(gap):
        teacher = torch.zeros(2, 4)
        return adaptability_loss(
            teacher - torch.tensor([gap, 0.0, 0.0, 0.0]), teacher, LABELS, disagreement_weight=0.0, agreement_weight=0.0
        ).item()

    assert game(0.0) == pytest.approx(0.2)  # H' is 1
    assert game(2.0) == 0
    assert game(30.0) == pytest.approx(0.1)  # H' is 0


def test_probabilities_that_are_one_hot_are_labels():
    one_hot = F.one_hot(LABELS, 3).float()
    for loss in (adaptability_loss, lambda s, t, y: gated_cross_entropy(s, t, y, gate=0.6)):
        torch.testing.assert_close(loss(STUDENT, TEACHER, one_hot), loss(STUDENT, TEACHER, LABELS))


# SynQ


def test_the_gate_lets_only_images_through_of_whose_label_the_teacher_is_sure():
    each = F.cross_entropy(STUDENT, LABELS, reduction="none")
    unsure = 1 - TEACHER.softmax(1).gather(1, LABELS[:, None]).squeeze(1)  # 0.29 and 0.89
    between = unsure.mean().item()
    torch.testing.assert_close(gated_cross_entropy(STUDENT, TEACHER, LABELS, gate=between), each[0] / 2)
    torch.testing.assert_close(gated_cross_entropy(STUDENT, TEACHER, LABELS, gate=0.95), each.mean())
    assert gated_cross_entropy(STUDENT, TEACHER, LABELS, gate=0.1) == 0


def test_the_gate_is_a_part_of_the_students_loss():
    settings = {"ce_weight": 0.5, "kd_weight": 2.0, "temperature": 4.0, "reduction": "mean"}
    gate = 0.6  # between the two images
    gated, whole = (compression_loss(STUDENT, TEACHER, LABELS, **settings, ce_gate=gate) for gate in (gate, 1.0))
    difference = F.cross_entropy(STUDENT, LABELS) - gated_cross_entropy(STUDENT, TEACHER, LABELS, gate=gate)
    assert difference > 0.1
    torch.testing.assert_close(whole - gated, 0.5 * difference)


def test_a_low_pass_keeps_what_is_constant_and_takes_what_alternates():
    constant, noise = torch.full((2, 3, 7, 9), 0.7), torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(low_pass(constant, sigma=1.5), constant)
    assert low_pass(noise, sigma=1.5).std() < 0.5 * noise.std()
    assert low_pass(noise, sigma=0.0) is noise
    assert low_pass(torch.randn(1, 1, 2, 2), sigma=30.0).shape == (1, 1, 2, 2)


# HAST


def test_features_that_differ_in_length_alone_are_aligned():
    student, teacher = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 7, 7)
    assert feature_alignment_loss([student, teacher], [3 * student, 0.1 * teacher]).item() == pytest.approx(
        0, abs=1e-12
    )


def test_features_without_pixels_are_aligned_as_they_are():
    student, teacher = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 3.0]])
    expected = ((0.5**0.5) ** 2 + (0.5**0.5 - 1) ** 2) / 2
    assert feature_alignment_loss([student], [teacher]).item() == pytest.approx(expected)


def test_the_gap_between_channels_that_are_alone_is_two_over_their_number():
    student, teacher = torch.zeros(2, 5, 3, 3), torch.zeros(2, 5, 3, 3)
    student[:, 1], teacher[:, 2] = 4.0, -7.0
    assert feature_alignment_loss([student], [teacher]).item() == pytest.approx(2 / 5)


def test_hard_samples_are_a_step_uphill_in_every_pixel():
    images = torch.randn(3, 2, 5, 5)
    hard = hard_samples(images, lambda x: (x * torch.linspace(-1, 1, 50).view(2, 5, 5)).sum(), step=0.1)
    torch.testing.assert_close(
        hard - images, (0.1 * torch.linspace(-1, 1, 50).sign()).view(2, 5, 5).expand(3, -1, -1, -1)
    )
    assert not hard.requires_grad


@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_student_and_teacher_show_the_same_places(protocol):
    torch.manual_seed(0)
    teacher = SmallResNet().eval()
    student, _ = quantize_network(teacher, Quantization("w8a8", protocol=protocol))
    images = torch.randn(4, 3, 9, 7)
    with torch.no_grad(), observe_ranges(student):
        student(images)
    seen, quantized = with_features(teacher)(images), with_features(student)(images)
    assert [tuple(f.shape) for f in seen[1]] == [(4, 5, 9, 7), (4, 7, 4, 3)]
    block = teacher.blocks[0](teacher.stem(images))
    assert torch.equal(seen[0], teacher(images))
    assert torch.equal(seen[1][0], block)
    assert torch.equal(quantized[0], student(images))
    for theirs, ours in zip(seen[1], quantized[1], strict=True):
        assert len(ours.unique()) <= 2**8
        assert 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_the_features_of_a_student_reach_its_weights():
    student, _ = quantize_network(SmallResNet(), Quantization("w4a4"))
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(4, 3, 9, 7))
    with_features(student)(torch.randn(4, 3, 9, 7))[1][0].sum().backward()
    assert student.get_parameter("stem.0.parametrizations.weight.original").grad.abs().sum() > 0


def test_a_network_without_residual_blocks_shows_its_activations():
    assert len(with_features(toy_teacher())(torch.randn(2, 2, 9, 11))[1]) == 2


def test_a_network_with_neither_has_nothing_to_show():
    with pytest.raises(InputError, match=r"Sequential has neither residual blocks nor .*; feature_weight needs that"):
        with_features(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))


# Qimera


def test_mixed_labels_are_what_the_formula_says():
    others, strengths = (
        torch.tensor([[0, 2], [1, 1], [3, 0]]),
        torch.tensor([[0.0, math.log(3)], [5.0, -1.0], [1.0, 1.0]]),
    )
    got = mixed_labels(torch.tensor([4, 4, 1]), others, strengths, torch.tensor([True, True, False]), num_classes=5)
    expected = torch.tensor([[0.25, 0, 0.75, 0, 0], [0, 1.0, 0, 0, 0], [0, 1.0, 0, 0, 0]])
    torch.testing.assert_close(got, expected)


def test_a_mixed_label_is_the_mixture_of_what_its_classes_have():
    table = nn.Embedding(7, 4)
    torch.testing.assert_close(embedded(table, F.one_hot(torch.arange(7), 7).float()), embedded(table, torch.arange(7)))
    half = torch.zeros(1, 7)
    half[0, [2, 5]] = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(embedded(table, half)[0], 0.25 * table.weight[2] + 0.75 * table.weight[5])


def test_a_share_of_the_labels_is_mixed_and_the_latent_vectors_stay():
    plain = LatentSource(batch_size=500, latent_dim=3, num_classes=7, seed=1)
    mixing = LatentSource(batch_size=500, latent_dim=3, num_classes=7, seed=1, mixed_share=0.4, mixed_classes=3)
    (z, labels), (same_z, probabilities) = (next(source.batches("compress", 2, 1)) for source in (plain, mixing))
    assert torch.equal(z, same_z)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(500))
    pure = probabilities.amax(1) == 1
    assert torch.equal(probabilities[pure].argmax(1), labels[pure])
    assert 0.5 < pure.float().mean() < 0.7  # 0.6, four standard deviations of 0.022 either side
    assert (probabilities > 0).sum(1).max() == 3


# AIT


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
