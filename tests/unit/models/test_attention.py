"""The attention modules against the formula or torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cellvision.models.unet.attention import AttentionGate, Cbam, SelfAttention, SqueezeExcite, pool_to_grid


@pytest.mark.parametrize("size", [(1, 1), (5, 31), (16, 16), (40, 33)])
def test_grid_is_adaptive_average_pooling(size):
    maps = torch.rand(2, 3, *size)
    torch.testing.assert_close(pool_to_grid(maps, 16), F.adaptive_avg_pool2d(maps, 16))


def test_self_attention_is_that_of_torch_where_the_grid_is_the_map():
    block = SelfAttention(8).eval()
    oracle = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    with torch.no_grad():
        block.position.weight.zero_()
        block.position.bias.zero_()
        oracle.in_proj_weight.copy_(torch.cat([block.to_query.weight, block.to_key_value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([block.to_query.bias, block.to_key_value.bias]))
        oracle.out_proj.weight.copy_(block.mix.weight)
        oracle.out_proj.bias.copy_(block.mix.bias)
        maps = torch.randn(2, 8, 16, 16)
        tokens = maps.flatten(2).transpose(1, 2)
        normed = block.norm(tokens)
        tokens = tokens + oracle(normed, normed, normed)[0]
        expected = (tokens + block.feed(tokens)).transpose(1, 2).reshape(maps.shape)
        torch.testing.assert_close(block(maps), expected, rtol=1e-4, atol=1e-5)


def test_self_attention_memory_grows_with_the_places_not_their_square():
    block, shapes = SelfAttention(8).eval(), []
    attend = F.scaled_dot_product_attention

    def watch(query, key, value):
        shapes.append((query.shape[2], key.shape[2]))
        return attend(query, key, value)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", watch)
        block(torch.rand(1, 8, 64, 128))
    assert shapes == [(64 * 128, 256)]


def test_gate_starts_almost_open_and_weighs_every_pixel():
    gate = AttentionGate(6)
    skip, deep = torch.rand(1, 6, 4, 5), torch.rand(1, 6, 4, 5)
    weights = gate(skip, deep) / skip
    torch.testing.assert_close(weights, weights[:, :1].expand_as(weights))
    assert 0.5 < weights.min() < weights.max() < 1.0


def test_squeeze_excite_weighs_channels_by_their_means():
    block = SqueezeExcite(8)
    maps = torch.rand(2, 8, 4, 5)
    weights = block.excite(maps.mean((2, 3), keepdim=True)).sigmoid()
    torch.testing.assert_close(block(maps), maps * weights)


def test_cbam_weighs_channels_then_pixels():
    block = Cbam(8)
    maps = torch.rand(2, 8, 4, 5)
    channels = block.excite(maps.mean((2, 3), keepdim=True)) + block.excite(maps.amax((2, 3), keepdim=True))
    weighed = maps * channels.sigmoid()
    summary = torch.stack([weighed.mean(1), weighed.amax(1)], dim=1)
    torch.testing.assert_close(block(maps), weighed * block.spatial(summary).sigmoid())
