import pytest
import torch

from cers.nets.swin_unet import (
    SwinBlock,
    SwinUNetDecoder,
    fitting_window,
    merge,
    partition,
    relative_index,
    shift_mask,
    unfold_channels,
)


@pytest.mark.parametrize("shape", [(14, 14, 7), (8, 12, 4), (6, 9, 3)])
def test_merge_undoes_partition(shape):
    height, width, window = shape
    x = torch.randn(2, height, width, 5)
    windows = partition(x, window)
    assert windows.shape == (2, height * width // window**2, window**2, 5)
    assert torch.equal(windows[0, 0, 1], x[0, 0, 1])
    assert torch.equal(merge(windows, height, width), x)


@pytest.mark.parametrize("factor", [2, 4])
def test_unfolding_channels_can_be_undone(factor):
    x = torch.randn(2, 3, 5, 4 * factor**2)
    y = unfold_channels(x, factor)
    assert y.shape == (2, 3 * factor, 5 * factor, 4)
    back = y.reshape(2, 3, factor, 5, factor, 4).transpose(2, 3).reshape(x.shape)
    assert torch.equal(back, x)
    assert torch.equal(y[0, 0, 1], x[0, 0, 0, 4:8])


@pytest.mark.parametrize(("height", "width", "window"), [(14, 28, 7), (8, 8, 4), (22, 22, 2), (5, 3, 1), (4, 4, 4)])
def test_window_is_the_largest_that_tiles(height, width, window):
    assert fitting_window(height, width) == window


def test_shifted_blocks_do_not_look_across_the_seam():
    """Rolling wraps the picture; a pixel may see only those that were within a window's reach before."""
    torch.manual_seed(0)
    block = SwinBlock(32, shifted=True, drop_path=0.0).eval()
    x = torch.randn(1, 8, 8, 32, requires_grad=True)
    out = block(x)
    (seen,) = torch.autograd.grad(out[0, 0, 0].sum(), x)
    touched = seen[0].abs().sum(-1) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(touched, expected)
    (seen,) = torch.autograd.grad(block(x)[0, 3, 3].sum(), x)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(seen[0].abs().sum(-1) > 0, expected)


def test_shift_mask_is_symmetric_and_lets_everyone_see_itself():
    mask = shift_mask(14, 14, 7, 3)
    assert mask.shape == (4, 49, 49)
    assert torch.equal(mask, mask.mT)
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert mask[0].all()
    assert not mask[3].all()


def test_smaller_windows_share_the_table_of_relative_positions():
    large, small = relative_index(7), relative_index(4)
    assert large[0, 0] == small[0, 0] == 84
    assert large.unique().numel() == 169
    # One step to the right is the same entry in both.
    assert large[1, 0] == small[1, 0]
    assert large[7, 0] == small[4, 0]


def test_tokens_at_a_quarter_become_the_image():
    decoder = SwinUNetDecoder((96, 192, 384, 768)).eval()
    features = [torch.randn(1, c, 224 // s, 224 // s) for c, s in ((96, 4), (192, 8), (384, 16), (768, 32))]
    with torch.no_grad():
        assert decoder(features, (224, 224)).shape == (1, 1, 224, 224)


def test_maps_that_do_not_halve_are_refused():
    features = [torch.randn(1, c, s, s) for c, s in ((8, 25), (16, 13), (32, 7), (64, 4))]
    with pytest.raises(ValueError, match=r"halve.*\(25, 25\)"):
        SwinUNetDecoder((8, 16, 32, 64))(features, (97, 97))
