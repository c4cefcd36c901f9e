"""A convolution of whole patches is a product of matrices, with its gradient and under its names."""

import copy

import pytest
import torch
from torch import nn

from safelens.vlm_patches import PatchProduct, convolve_patches, multiply_patches


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)))


def test_equals_the_convolution_and_learns_the_same():
    plain = made()
    ours = copy.deepcopy(plain)
    multiply_patches(ours)
    assert type(ours[0]) is PatchProduct
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(11, 3, 2, 4, 4)
    found, wanted = ours(x), plain(x)
    assert found.shape == wanted.shape == (11, 8, 1, 1, 1)
    torch.testing.assert_close(found, wanted)
    for result in (found, wanted):
        result.square().sum().backward()
    torch.testing.assert_close(ours[0].weight.grad, plain[0].weight.grad)
    torch.testing.assert_close(ours[0].bias.grad, plain[0].bias.grad)


def test_a_picture_of_several_patches_is_convolved():
    plain = made()
    ours = copy.deepcopy(plain)
    multiply_patches(ours)
    x = torch.randn(2, 3, 2, 8, 12)
    torch.testing.assert_close(ours(x), plain(x))
    convolve_patches(ours)
    assert type(ours[0]) is nn.Conv3d


@pytest.mark.parametrize("more", [{"padding": 1}, {"groups": 2}])
def test_other_convolutions_stay(more):
    model = nn.Sequential(nn.Conv3d(4, 8, 2, **more))
    multiply_patches(model)
    assert type(model[0]) is nn.Conv3d
