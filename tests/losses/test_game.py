"""The game of AdaDFQ and the gate of SynQ: closed forms and references."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from nni_autorecon.losses.game import adaptability_loss, disagreement_entropy
from nni_autorecon.losses.student import compression_loss, gated_cross_entropy

STUDENT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 2])


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
