"""The NNI model space: what NNI sees, and that freezing it is deriving."""

import pytest
import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.nn.pytorch import InputChoice, LayerChoice
from nni.nas.space import model_context
from nni.nas.strategy import DARTS, GumbelDARTS

from nni_autorecon.generator.genotype import random_choices
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.generator.topology import CROSS, EDGES
from nni_autorecon.nas.space import GeneratorSpace, choices_of, sample_of
from tests.helpers.toys import GENERATOR


@pytest.fixture(scope="module")
def space():
    torch.manual_seed(0)
    return GeneratorSpace(**GENERATOR)


def test_nni_sees_one_choice_per_edge(space):
    mutables = space.simplify()
    assert set(mutables) == {edge.label for edge in EDGES}
    for edge in EDGES:
        mutable = mutables[edge.label]
        if edge.kind == CROSS:
            assert isinstance(mutable, CategoricalMultiple)
            assert (len(mutable.values), mutable.n_chosen) == (3, 1)
        else:
            assert isinstance(mutable, Categorical)
            assert tuple(mutable.values) == edge.candidates
    assert sum(isinstance(module, LayerChoice) for module in space.modules()) == 21
    assert sum(isinstance(module, InputChoice) for module in space.modules()) == 12


@pytest.mark.parametrize("seed", range(5))
def test_the_frozen_space_is_the_derived_generator_bit_for_bit(space, seed):
    choices = random_choices(seed)
    frozen = space.freeze(sample_of(choices))
    derived = derived_generator(choices, **GENERATOR)
    assert frozen.generator.macs() == derived.macs()
    derived.load_state_dict(frozen.generator.state_dict())  # strict: the same names and shapes
    z, labels = torch.randn(6, 7), torch.arange(6) % 5
    for train in (True, False):
        assert torch.equal(frozen.train(train)(z, labels), derived.train(train)(z, labels))


def test_a_space_built_frozen_is_the_derived_generator_too():
    choices = random_choices(7)
    with model_context(sample_of(choices)):
        built = GeneratorSpace(**GENERATOR)
    derived = derived_generator(choices, **GENERATOR)
    derived.load_state_dict(built.generator.state_dict())
    z, labels = torch.randn(6, 7), torch.arange(6) % 5
    assert torch.equal(built(z, labels), derived(z, labels))


def test_samples_and_choices_are_inverse(space):
    choices = random_choices(5)
    sample = sample_of(choices)
    space.validate(sample)
    assert choices_of(sample) == choices


def test_nni_draws_samples_of_the_space(space):
    sample = {}
    generator = space.random(sample).generator
    derived = derived_generator(choices_of(sample), **GENERATOR)
    derived.load_state_dict(generator.state_dict())


@pytest.mark.parametrize("strategy", [DARTS(), GumbelDARTS(temperature=1.0)])
def test_nnis_own_differentiable_strategies_take_the_space_as_it_is(strategy):
    supernet = strategy.mutate_model(GeneratorSpace(**GENERATOR))
    images = supernet(torch.randn(6, 7), torch.arange(6) % 5)
    images.pow(3).sum().backward()
    assert len(strategy._arch_parameters) == 33
    assert all(alpha.grad is not None for alpha in strategy._arch_parameters.values())
