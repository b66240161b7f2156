"""The student that a search plays against: when it learns, what it changes, and that the search listens to it."""

import pytest
import torch
from torch import nn

from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import DivergenceError, InputError
from nni_autorecon.losses.game import disagreement_entropy
from nni_autorecon.losses.reconstruction import ReconstructionLoss
from nni_autorecon.nas import search
from nni_autorecon.nas.autorecon import AutoReConModule, AutoReConStrategy
from nni_autorecon.nas.opponent import Opponent
from nni_autorecon.quantization.quantizers import ActivationQuantizer
from nni_autorecon.runs.folder import RunFolder
from tests.helpers.searches import CONFIG, run_search
from tests.helpers.toys import snapshot

GAME = SearchConfig(adaptability_weight=1.0, student_bits="w2a2", epochs=8)


@pytest.fixture
def opponent(digits_teacher):
    return Opponent(GAME, digits_teacher)


def _batch(teacher, seed=0):
    torch.manual_seed(seed)
    images = torch.randn(32, *teacher.image)
    return images, teacher.network(images)


def test_it_waits_tracks_ranges_then_learns(opponent, digits_teacher):
    images, logits = _batch(digits_teacher)
    teacher, counts, moved = snapshot(digits_teacher.network), [], []
    for epoch in range(4):
        before = [parameter.clone() for parameter in opponent.student.parameters()]
        opponent.learn(epoch, images, logits)
        quantizers = [module for module in opponent.student.modules() if isinstance(module, ActivationQuantizer)]
        counts.append({int(quantizer.observations) for quantizer in quantizers})
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, opponent.student.parameters(), strict=True)))
    assert counts == [{0}, {1}, {1}, {1}]
    assert moved == [opponent.plays(epoch) for epoch in range(4)] == [False, False, True, True]
    assert all(torch.equal(value, teacher[name]) for name, value in digits_teacher.network.state_dict().items())


def test_it_comes_to_agree_with_the_teacher(opponent, digits_teacher):
    images, logits = _batch(digits_teacher)
    opponent.learn(1, images, logits)
    before = disagreement_entropy(opponent.student(images), logits).mean()
    for _ in range(20):
        opponent.learn(2, images, logits)
    assert disagreement_entropy(opponent.student(images), logits).mean() > before


def test_its_loss_reaches_the_images_and_not_its_own_weights(opponent, digits_teacher):
    images, logits = _batch(digits_teacher)
    opponent.learn(1, images, logits)
    images.requires_grad_()
    opponent.loss(images, digits_teacher.network(images), torch.arange(32) % 10).backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in opponent.student.parameters())


def test_weights_that_are_no_longer_finite_are_named(opponent):
    opponent.require_finite()
    nn.init.constant_(next(opponent.student.parameters()), float("nan"))
    with pytest.raises(DivergenceError, match="opposing student"):
        opponent.require_finite()


class Dimmer:
    """An opponent that wants the upper edge of images dark, from the second epoch on."""

    def __init__(self):
        self.losses, self.learned = [], []

    def plays(self, epoch):
        return epoch >= 1

    def loss(self, images, logits, labels):
        loss = images[:, :, 0].mean()
        self.losses.append(loss.item())
        return loss

    def learn(self, epoch, images, logits):
        assert not images.requires_grad
        self.learned.append(epoch)

    def require_finite(self):
        pass

    def state(self):
        return {}


def _playing(opponent, **changes):
    """A search that has nothing to minimize but an opponent's loss; the confidence after each epoch."""

    def indifferent(images, labels):
        zero = 0 * images.mean()
        return ReconstructionLoss(zero, zero, zero, zero)

    confidences = []

    def kind(config, on_epoch):
        return AutoReConStrategy(
            config, opponent=opponent, on_epoch=lambda metrics: confidences.append(metrics["confidence"])
        )

    config = {**CONFIG.to_dict(), "adaptability_weight": 1.0, "weight_lr": 0.02, "weight_steps": 8, **changes}
    run_search(SearchConfig(**config), objective=indifferent, kind=kind)
    return confidences


def test_weights_and_alpha_follow_it_once_it_plays():
    opponent = Dimmer()
    confidences = _playing(opponent)
    assert opponent.learned == [0] * 8 + [1] * 8 + [2] * 8  # in the steps of W alone
    assert len(opponent.losses) == 2 * 10
    assert opponent.losses[0] - opponent.losses[-1] > 0.1
    assert confidences[0] < confidences[1] < confidences[2]  # without it, alpha would get no gradient


def test_its_weight_scales_the_loss(monkeypatch):
    opponent, minimized = Dimmer(), []
    backward = AutoReConModule.manual_backward
    monkeypatch.setattr(
        AutoReConModule, "manual_backward", lambda self, loss: minimized.append(loss.item()) or backward(self, loss)
    )
    _playing(opponent, adaptability_weight=0.25)
    assert minimized[10:] == pytest.approx([0.25 * loss for loss in opponent.losses])


def test_a_search_whose_student_diverges_says_what_to_lower(digits_teacher, tmp_path):
    config = SearchConfig(
        width=2,
        latent_dim=5,
        batch_size=4,
        epochs=3,
        weight_steps=4,
        architecture_steps=1,
        validation_steps=1,
        adaptability_weight=1.0,
        student_lr=1e30,
    )
    with pytest.raises(DivergenceError, match="opposing student are no longer finite; lower student_lr"):
        search.run_search(config, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_bits": "w3a3"}, "adaptability_weight is 0, so that student_bits would do nothing"),
        ({"student_lr": 0.1, "student_bits": "w3a3"}, "student_bits, student_lr would do nothing"),
        ({"adaptability_weight": 1.0, "epochs": 1}, "give 2 epochs or more"),
        ({"adaptability_weight": 1.0, "strategy": "random"}, "so that adaptability_weight would do nothing"),
        ({"adaptability_weight": 1.0, "strategy": "enas"}, "so that adaptability_weight would do nothing"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SearchConfig(**settings).require_consistent()
