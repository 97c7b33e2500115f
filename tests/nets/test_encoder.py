import pytest
import torch

from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.encoder import PyramidEncoder
from cers.nets.mcam import MCAMDecoder
from cers.nets.reference_fusion import ReferenceFusion
from cers.nets.text_attention import ReportAttention


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def lite() -> PyramidEncoder:
    torch.manual_seed(0)
    return PyramidEncoder("tf_efficientnet_lite0").eval()


@pytest.mark.parametrize(
    ("name", "own", "cers"),
    [
        ("convnext_tiny", 27_818_592, 48_728_354),
        # torchvision's Swin V2, which the paper's program uses, counts 4,416 key biases that it keeps at zero.
        ("swinv2_tiny_window8_256", 27_581_034 - 4_416, 48_490_796 - 4_416),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name, own, cers):
    with torch.device("meta"):
        encoder = PyramidEncoder(name)
        channels = encoder.channels
        rest = (ResidualUNetDecoder(channels), MCAMDecoder(channels), ReportAttention(channels, 768))
        fusion = ReferenceFusion(channels[3])
    assert channels == (96, 192, 384, 768)
    assert parameters(encoder) == own
    assert own + sum(map(parameters, rest)) + parameters(fusion) == cers


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tf_efficientnet_lite0", (16, 24, 40, 112, 320)),
        ("convnext_atto", (40, 80, 160, 320)),
        ("resnet18", (64, 64, 128, 256, 512)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
        ("swinv2_tiny_window8_256", (96, 192, 384, 768)),
    ],
)
def test_maps_at_their_strides_whatever_the_image(name, channels):
    encoder = PyramidEncoder(name, drop_path=0.0).eval()
    assert encoder.channels == channels
    with torch.no_grad():
        for size in ((64, 64), (97, 130)):
            maps = encoder(torch.randn(1, 3, *size))
            up = [-(-side // 32) * 32 for side in size]
            expected = [
                (1, c, up[0] // s, up[1] // s) for c, s in zip(channels[::-1], (32, 16, 8, 4, 2), strict=False)
            ][::-1]
            assert [tuple(m.shape) for m in maps] == expected
            assert all(m.isfinite().all() for m in maps)


def test_logits_of_an_odd_image_come_at_its_size(lite):
    image = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        maps = lite(image)
        assert ResidualUNetDecoder(lite.channels).eval()(maps, (97, 130)).shape == (1, 1, 97, 130)
        assert MCAMDecoder(lite.channels).eval()(maps, None, (97, 130)).shape == (1, 1, 97, 130)


def test_every_parameter_of_the_encoder_is_used(lite):
    maps = lite(torch.randn(2, 3, 64, 64))
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [n for n, p in lite.named_parameters() if p.grad is None] == []


def test_channels_last_and_mixed_precision(lite):
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = lite(image)
        same = lite(image.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = lite(image)
    for a, b, c in zip(exact, same, rough, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * a.abs().max())
        assert (a - c.float()).abs().max() < 0.1 * a.abs().max()


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    encoder = PyramidEncoder("convnext_atto", drop_path=0.5)
    torch.nn.init.ones_(encoder.body["stages_3"].blocks[1].gamma)
    image = torch.randn(4, 3, 32, 32)
    assert not torch.equal(encoder(image)[3], encoder(image)[3])
    encoder.eval()
    assert torch.equal(encoder(image)[3], encoder(image)[3])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tin", "did you mean 'convnext_tiny'"),
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16\]"),
        ("vgg11", "no feature maps"),
        ("", "no encoder ''"),
    ],
)
def test_unsuitable_models_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        PyramidEncoder(name)


def test_shapes_are_checked_in_tests(lite):
    with pytest.raises(Exception, match="images"):
        lite(torch.randn(1, 1, 64, 64))
