"""Feature maps of two nets made comparable."""

import pytest
import torch

from cellvision.compression.distill.adapters import Adapter, build_adapters, cut_to_shared
from cellvision.compression.distill.taps import list_sources
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError


def test_equal_channels_are_left_as_they_are():
    adapter = Adapter(source="a", width=4, teacher_width=4)
    student, teacher = torch.rand(2, 2, 4, 3, 3)
    found, wanted = adapter(student, teacher)
    assert torch.equal(found, student)
    assert torch.equal(wanted, teacher)
    assert not list(adapter.parameters())


def test_a_cut_student_is_compared_by_the_channels_it_still_has():
    adapter = Adapter(source="a", width=6, teacher_width=6)
    teacher = torch.rand(1, 6, 2, 2)
    adapter.follow({"a": {0: torch.tensor([0, 2, 4, 5])}, "b": {0: torch.tensor([0])}})
    adapter.follow({"a": {0: torch.tensor([1, 3]), 1: torch.tensor([0])}})  # places among those that were left
    adapter.follow({"b": {0: torch.tensor([0])}})
    found, wanted = adapter(teacher[:, [2, 5]], teacher)
    assert torch.equal(found, wanted)


def test_other_widths_are_brought_together_by_a_trained_convolution():
    torch.manual_seed(0)
    adapter = Adapter(source="a", width=3, teacher_width=5)
    (weight,) = adapter.parameters()
    student, teacher = torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 4)
    torch.testing.assert_close(adapter(student, teacher)[0], torch.einsum("oc,bchw->bohw", weight, student))
    adapter.follow({"a": {0: torch.tensor([0, 2])}})
    found, wanted = adapter(student[:, [0, 2]], teacher)
    torch.testing.assert_close(found, torch.einsum("oc,bchw->bohw", weight[:, [0, 2]], student[:, [0, 2]]))
    assert torch.equal(wanted, teacher)
    found.sum().backward()
    assert weight.grad[:, [0, 2]].abs().min() > 0
    assert not weight.grad[:, 1].any()
    again = Adapter(source="a", width=3, teacher_width=5)
    again.load_state_dict(adapter.state_dict())  # of the same shapes after a cut
    assert torch.equal(again(student[:, [0, 2]], teacher)[0], found)


def test_channels_cut_unknown_to_it_are_an_error():
    with pytest.raises(ConfigError, match=r"a student with 3 channels at a, where it had 4; .* Adapter.follow"):
        Adapter(source="a", width=4, teacher_width=4)(torch.rand(1, 3, 2, 2), torch.rand(1, 4, 2, 2))


def test_places_that_only_one_has_are_cut_off():
    first, second = torch.rand(1, 2, 4, 6), torch.rand(1, 3, 5, 5)
    found = cut_to_shared(first, second)
    assert torch.equal(found[0], first[..., :5])
    assert torch.equal(found[1], second[..., :4, :])


@pytest.mark.parametrize("name", ["unet", "centermask2"])
def test_sources_have_the_channels_of_the_features(kit, name):
    net = kit.build_net(name).eval()
    features = {key: maps.shape[1] for key, maps in net.features(torch.zeros(1, 1, 64, 64)).items()}
    found = {f"stride_{stride}": len(net.get_parameter(source)) for stride, source in list_sources(net).items()}
    assert found == {key: features[key] for key in found}
    assert len(features) - len(found) == (name == "unet")  # the deepest map of a U-Net is the encoder's


def test_levels_are_matched_by_stride(kit):
    student, teacher = kit.build_net(widths=(8, 16, 16)), kit.build_net(widths=(8, 12))
    adapters = build_adapters(student, teacher)
    assert list(adapters) == [1]
    fine = kit.build_net("centermask2", levels=(2, 3), top_levels=0, **dict(SIZES, roi_levels=(2, 3)))
    coarse = kit.build_net("centermask2", levels=(4, 5), top_levels=0, **dict(SIZES, roi_levels=(4, 5)))
    with pytest.raises(ConfigError, match=r"strides \[4, 8\] px and a teacher with maps at \[16, 32\] px"):
        build_adapters(fine, coarse)


SIZES = {"assigning": {"sizes_of_interest": (64,)}}


@pytest.mark.parametrize("name", ["unet", "centermask2"])
def test_a_cut_of_the_pruner_is_followed(kit, name):
    """The channels that stay are those whose values are the same as before in a net whose others did nothing."""
    net = kit.build_net(name).eval()
    before = {stride: net.get_parameter(source).detach().clone() for stride, source in list_sources(net).items()}
    adapters = build_adapters(net, net)
    cut = Pruner(net, torch.zeros(1, 1, 64, 64), PruneOptions(macs=0.4)).step().cut
    for stride, adapter in adapters.items():
        adapter.follow(cut.kept)
        after = net.get_parameter(adapter.source)
        assert len(after) == adapter.stays.sum()
        rest = before[stride][adapter.stays]
        for dim, places in cut.kept.get(adapter.source, {}).items():
            rest = rest if dim == 0 else rest.index_select(dim, places)
        assert torch.equal(after, rest)
    assert any(not adapter.stays.all() for adapter in adapters.values())
