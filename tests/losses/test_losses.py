"""Eq. 1 and the compression losses: closed forms, references, and what they leave untouched."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy
from torch import nn
from torch.distributions import Normal, kl_divergence

from nni_autorecon.config.search import SearchConfig
from nni_autorecon.generator.training import objective_for
from nni_autorecon.losses.batchnorm import (
    BatchNormStatistics,
    ObservedBatchNorm2d,
    observed,
    record_bn_statistics,
)
from nni_autorecon.losses.reconstruction import (
    GAPS,
    ReconstructionLoss,
    bn_statistics_loss,
    reconstruction_loss,
    zeroq_loss,
)
from nni_autorecon.losses.student import balance_loss, compression_loss, distillation_loss, generator_loss, l1_loss


def _teacher(channels=3, classes=5):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.BatchNorm2d(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    ).double()
    for bn in (network[1], network[3]):
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2.0)
    return network.eval().requires_grad_(False)


def _images():
    return torch.randn(7, 2, 5, 6, dtype=torch.double, requires_grad=True), torch.arange(7) % 5


def test_statistics_are_of_the_input_with_biased_variance():
    teacher, (images, _) = _teacher(), _images()
    with record_bn_statistics(teacher) as statistics:
        teacher(images)
    x = teacher[0](images).detach().numpy()
    assert len(statistics) == 2
    np.testing.assert_allclose(statistics[0].mean.detach(), x.mean((0, 2, 3)))
    np.testing.assert_allclose(statistics[0].var.detach(), x.var((0, 2, 3), ddof=0))
    assert statistics[0].running_mean is teacher[1].running_mean


def test_the_loss_vanishes_when_batch_and_running_statistics_agree():
    teacher, (images, _) = _teacher(), _images()
    with record_bn_statistics(teacher) as statistics:
        teacher(images)
        first = statistics[0]
        teacher[1].running_mean.copy_(first.mean.detach())
        teacher[1].running_var.copy_(first.var.detach())
        statistics.clear()
        teacher(images)
    assert bn_statistics_loss(statistics[:1]).item() == pytest.approx(0, abs=1e-20)
    assert bn_statistics_loss(statistics).item() > 0


@pytest.mark.parametrize("form", GAPS)
def test_every_layer_counts_alike_whatever_its_channels(form):
    torch.manual_seed(0)
    values = [torch.rand(4, c, dtype=torch.double).add(0.5).requires_grad_() for c in (2, 7, 3)]
    statistics = [BatchNormStatistics(*value) for value in values]
    loss, plain = (
        bn_statistics_loss(statistics, form=form),
        torch.stack([GAPS[form](s).mean() for s in statistics]).mean(),
    )
    torch.testing.assert_close(loss, plain)
    for gradient, expected in zip(torch.autograd.grad(loss, values), torch.autograd.grad(plain, values), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_eq_1_against_the_written_formula():
    teacher, (images, labels) = _teacher(), _images()
    loss = reconstruction_loss(teacher, images, labels, bns_weight=0.1)
    x, gaps = images, []
    for layer in teacher:
        if isinstance(layer, nn.BatchNorm2d):
            values = x.detach().numpy()
            gaps.append(
                np.mean((values.mean((0, 2, 3)) - layer.running_mean.numpy()) ** 2)
                + np.mean((values.var((0, 2, 3)) - layer.running_var.numpy()) ** 2)
            )
        x = layer(x)
    cross_entropy = -log_softmax(x.detach().numpy(), axis=1)[np.arange(7), labels.numpy()].mean()
    assert loss.bns.item() == pytest.approx(np.mean(gaps))
    assert loss.class_.item() == pytest.approx(cross_entropy)
    assert loss.total.item() == pytest.approx(cross_entropy + 0.1 * np.mean(gaps))
    torch.testing.assert_close(loss.logits, x)


def test_other_forms_of_the_gap_against_their_formulas():
    teacher, (images, labels) = _teacher(), _images()
    with record_bn_statistics(teacher) as statistics:
        teacher(images)

    def means(gap):
        """Return the mean of a gap between (μ, σ) of a batch and those remembered, over channels, then over layers."""
        of_layers = []
        for s in statistics:
            batch, running = (s.mean, (s.var + 1e-6).sqrt()), (s.running_mean, (s.running_var + 1e-6).sqrt())
            of_layers.append(gap(*batch, *running).mean())
        return torch.stack(of_layers).mean()

    expected = {
        "std": means(lambda m, s, running_m, running_s: (m - running_m) ** 2 + (s - running_s) ** 2),
        "kl": means(lambda m, s, running_m, running_s: kl_divergence(Normal(m, s), Normal(running_m, running_s))),
    }
    for form, value in expected.items():
        objective = objective_for(observed(teacher), SearchConfig(bns_form=form))
        torch.testing.assert_close(objective(images, labels).bns, value)


def test_the_gradient_reaches_the_images_only_and_is_right():
    teacher, (images, labels) = _teacher(), _images()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(teacher, x, labels, bns_weight=0.1).total, images)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_hooks_are_gone_afterwards_even_after_an_exception():
    teacher, (images, _) = _teacher(), _images()
    with pytest.raises(RuntimeError), record_bn_statistics(teacher):
        teacher(images[:, :1])
    assert not any(module._forward_pre_hooks for module in teacher.modules())


class NormOfItsOwn(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, NormOfItsOwn])
def test_observed_norms_give_the_same_loss_and_gradient(inplace, affine, kind):
    teacher, (images, labels) = _teacher(), _images()
    teacher[1] = kind(3, affine=affine).double()
    teacher[2] = nn.ReLU(inplace)
    for values in teacher[1].parameters():
        nn.init.normal_(values)
    teacher.eval().requires_grad_(False)
    twin = observed(teacher)
    assert isinstance(twin[3], ObservedBatchNorm2d)
    assert not isinstance(teacher[3], ObservedBatchNorm2d)
    plain, fast = (reconstruction_loss(network, images, labels, bns_weight=0.1) for network in (teacher, twin))
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(loss.total, images)[0] for loss in (plain, fast)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(twin, x, labels, bns_weight=0.1).total, images)
    assert torch.equal(twin(images), teacher(images))
    assert all(norm.recorded == () for norm in (twin[1], twin[3]) if isinstance(norm, ObservedBatchNorm2d))


@pytest.mark.parametrize("prepared", [lambda network: network, observed])
def test_records_nest(prepared):
    """What runs in an inner block is recorded by both."""
    teacher, (images, _) = prepared(_teacher()), _images()
    with record_bn_statistics(teacher) as outer:
        with record_bn_statistics(teacher) as inner:
            teacher(images)
        teacher(images)
    assert (len(outer), len(inner)) == (4, 2)


def test_norms_without_running_statistics_are_not_recorded():
    teacher, (images, _) = _teacher(), _images()
    teacher[1] = nn.BatchNorm2d(3, track_running_stats=False).double()
    for network in (teacher, observed(teacher)):
        with record_bn_statistics(network) as statistics:
            network(images)
        assert len(statistics) == 1


def test_a_teacher_that_cannot_serve_is_refused():
    images, labels = _images()
    with pytest.raises(ValueError, match="training mode"):
        reconstruction_loss(_teacher().train(), images, labels, bns_weight=0.1)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(60, 5)).double().eval()
    with pytest.raises(ValueError, match="BatchNorm2d"):
        reconstruction_loss(plain, images, labels, bns_weight=0.1)
    assert reconstruction_loss(plain, images, labels, bns_weight=0.0).bns.item() == 0


def _standardized(images):
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), correction=0, keepdim=True)


def test_zeroq_vanishes_when_all_statistics_agree():
    teacher, images = _teacher(), _standardized(_images()[0].detach())
    for bn in (teacher[1], teacher[3]):  # the second one's input depends on the first one's statistics
        with record_bn_statistics(teacher) as statistics:
            teacher(images)
        seen = statistics[0 if bn is teacher[1] else 1]
        bn.running_mean.copy_(seen.mean)
        bn.running_var.copy_(seen.var)
    assert zeroq_loss(teacher, images).item() == pytest.approx(0, abs=1e-12)
    assert zeroq_loss(teacher, 2 * images).item() > 1


def test_zeroq_against_the_written_formula():
    teacher, (images, _) = _teacher(), _images()
    entering = [images, teacher[0](images), teacher[:3](images)]
    remembered = [(np.zeros(2), np.ones(2))]
    remembered += [(bn.running_mean.numpy(), np.sqrt(bn.running_var.numpy())) for bn in (teacher[1], teacher[3])]
    expected = 0.0
    for x, (mean, std) in zip(entering, remembered, strict=True):
        values = x.detach().numpy()
        expected += np.sum((values.mean((0, 2, 3)) - mean) ** 2) + np.sum((values.std((0, 2, 3)) - std) ** 2)
    assert zeroq_loss(teacher, images).item() == pytest.approx(expected, rel=1e-5)
    assert torch.autograd.gradcheck(lambda x: zeroq_loss(teacher, x), images)


def test_zeroq_has_a_finite_gradient_on_constant_images_and_refuses_what_cannot_serve():
    images = torch.zeros(3, 2, 5, 6, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(zeroq_loss(_teacher(), images), images)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="training mode"):
        zeroq_loss(_teacher().train(), images)
    with pytest.raises(ValueError, match="nothing to match"):
        zeroq_loss(nn.Sequential(nn.Flatten(), nn.Linear(60, 5)).double().eval(), images)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_distillation_against_scipy(reduction):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, dtype=torch.double).unbind()
    q, p = softmax(teacher.numpy() / 20, axis=1), softmax(student.numpy() / 20, axis=1)
    divergence = rel_entr(q, p).sum(1).mean() * 20**2
    expected = divergence / 5 if reduction == "mean" else divergence
    assert distillation_loss(student, teacher, temperature=20, reduction=reduction).item() == pytest.approx(expected)


def test_distillation_vanishes_for_equal_logits_and_refuses_other_reductions():
    logits = torch.randn(3, 5)
    assert distillation_loss(logits, logits, temperature=4.0, reduction="mean").item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="sum"):
        distillation_loss(logits, logits, temperature=4.0, reduction="sum")


def test_compression_loss_adds_its_two_weighted_parts():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(7, 5), torch.randn(7, 5), torch.arange(7) % 5

    def loss(ce, kd):
        return compression_loss(
            student, teacher, labels, ce_weight=ce, kd_weight=kd, temperature=20.0, reduction="mean"
        ).item()

    assert loss(2.0, 3.0) == pytest.approx(2 * loss(1.0, 0.0) + 3 * loss(0.0, 1.0))
    assert loss(1.0, 0.0) == pytest.approx(nn.functional.cross_entropy(student, labels).item())


def test_l1_is_the_mean_over_batch_and_classes():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 5).unbind()
    assert l1_loss(student, teacher).item() == pytest.approx(np.abs(teacher.numpy() - student.numpy()).mean())


def test_balance_is_the_negative_entropy_of_the_mean_prediction():
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 5, dtype=torch.double, requires_grad=True)
    mean = softmax(logits.detach().numpy(), axis=1).mean(0)
    assert balance_loss(logits).item() == pytest.approx(-entropy(mean))
    assert torch.autograd.gradcheck(balance_loss, logits)


def test_balance_in_closed_form():
    assert balance_loss(100 * torch.eye(5)).item() == pytest.approx(-np.log(5))  # every class once
    assert balance_loss(100 * torch.eye(5)[[2, 2, 2]]).item() == pytest.approx(0, abs=1e-6)  # one class only


def test_balance_has_a_finite_gradient_where_a_probability_underflows():
    logits = (1e4 * torch.eye(5)[[1, 1, 3]]).requires_grad_()
    balance_loss(logits).backward()
    assert logits.grad.isfinite().all()


def _terms():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 5).unbind()
    return ReconstructionLoss(torch.tensor(2.0), torch.tensor(1.5), torch.tensor(0.5), teacher), student


def _weights(*weights):
    return dict(zip(("reconstruction_weight", "adversarial_weight", "balance_weight"), weights, strict=True))


def test_the_generator_maximizes_l1_and_minimizes_the_rest():
    reconstruction, student = _terms()
    loss = generator_loss(reconstruction, student, **_weights(2.0, 3.0, 5.0))
    adversarial = l1_loss(student, reconstruction.logits).item()
    balance = balance_loss(reconstruction.logits).item()
    assert loss.total.item() == pytest.approx(2 * 2.0 - 3 * adversarial + 5 * balance)
    assert (loss.adversarial.item(), loss.balance.item()) == (adversarial, balance)
    assert loss.reconstruction is reconstruction


@pytest.mark.parametrize("present", [0, 1, 2])
def test_a_weight_of_0_removes_its_term_whatever_it_is(present):
    reconstruction, student = _terms()
    weights = [0.0, 0.0, 0.0]
    weights[present] = 1.0
    loss = generator_loss(reconstruction, student, **_weights(*weights))
    assert loss.total == (reconstruction.total, -loss.adversarial, loss.balance)[present]
    nan = torch.tensor(float("nan"))
    if present != 0:
        spoiled = generator_loss(reconstruction._replace(total=nan), student, **_weights(*weights))
    else:
        spoiled = generator_loss(reconstruction, student * nan, **_weights(*weights))
    assert spoiled.total == loss.total
