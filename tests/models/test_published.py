"""The models have the size, the resolution and the cost of the published ones."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.models import MODELS, Builder, build, cifar_resnet
from tests.models.nets import images, last_pooling, multiplications

# Parameters; 10^9 multiplications an image; height and width before the last layer.
PUBLISHED = {
    "resnet8_32": (10, 75_290, None, 8),
    "resnet14_32": (10, 172_506, None, 8),
    "resnet20_32": (10, 269_722, 0.041, 8),
    "resnet18_32": (10, 11_173_962, 0.56, 4),
    "resnet18_224": (1000, 11_689_512, 1.814, 7),
    "mobilenetv2_32": (10, 2_296_922, 0.09, 4),
    "mobilenetv2_224": (1000, 3_504_872, 0.301, 7),
}
# Convolutions and the affine layer.
LAYERS = {
    "resnet8_32": 8,
    "resnet14_32": 14,
    "resnet20_32": 20,
    "resnet18_32": 21,
    "resnet18_224": 21,
    "mobilenetv2_32": 58,
    "mobilenetv2_224": 53,
}


def test_every_model_is_tested():
    assert set(MODELS) == set(PUBLISHED) == set(LAYERS)


@pytest.mark.parametrize("name", MODELS)
def test_published_size_and_resolution(name):
    classes, parameters, billions, before_pooling = PUBLISHED[name]
    size = int(name.split("_")[-1])
    y = build(name, nn.Variable((2, 3, size, size)), classes, train=True)
    assert y.shape == (2, classes)
    assert sum(v.size for v in nn.get_parameters().values()) == parameters
    assert sum(k.endswith("/W") for k in nn.get_parameters()) == LAYERS[name]
    assert last_pooling(y).inputs[0].shape[2:] == (before_pooling,) * 2
    if billions is not None:
        digits = len(str(billions).split(".")[1])
        assert round(multiplications(y, 2) / 1e9, digits) == billions


def test_width_multiplies_and_rounds_the_channels_of_resnets():
    build("resnet18_32", images(), 10, True, width=0.3)
    assert nn.get_parameters()["stem/conv/W"].shape == (19, 3, 3, 3)
    assert nn.get_parameters()["stage4/block2/conv2/conv/W"].shape == (154, 154, 3, 3)
    nn.clear_parameters()
    build("resnet20_32", images(), 10, True, width=0.001)
    assert nn.get_parameters()["fc/affine/W"].shape == (1, 10)
    nn.clear_parameters()
    build("resnet20_32", images(), 10, True, width=2)
    assert nn.get_parameters()["fc/affine/W"].shape == (128, 10)


@pytest.mark.parametrize("name", ["mobilenetv2_32", "mobilenetv2_224"])
@pytest.mark.parametrize(
    ("width", "stem", "last", "head"),
    [(0.25, 8, 80, 1280), (0.35, 16, 112, 1280), (0.75, 24, 240, 1280), (1.4, 48, 448, 1792)],
)
def test_width_rounds_the_channels_of_mobilenets_as_its_authors(name, width, stem, last, head):
    build(name, images(), 10, True, width=width)
    parameters = nn.get_parameters()
    assert parameters["stem/conv/W"].shape == (stem, 3, 3, 3)
    assert parameters["head/conv/W"].shape == (head, last, 1, 1)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("_32")])
def test_stem_stride_halves_the_resolution(name):
    sizes = []
    for stride in (1, 2):
        y = build(name, images(2, 32), 10, True, width=0.1, stem_stride=stride)
        sizes.append(last_pooling(y).inputs[0].shape[2])
    assert sizes[0] == 2 * sizes[1]


def test_shortcut_without_parameters_is_every_second_pixel_between_zeros():
    h = images(2, 5)
    b = Builder(train=True)
    y = b.zero_channels(b.subsample(h, 2), 6)
    y.forward()
    expected = np.zeros((2, 6, 3, 3))
    expected[:, 1:4] = h.d[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.d, expected)
    last = Builder(train=True, channel_last=True)
    z = last.zero_channels(images(2, 5, channel_last=True), 6)
    z.forward()
    assert z.shape == (2, 5, 5, 6)
    np.testing.assert_array_equal(z.d[..., 1:4], images(2, 5, channel_last=True).d)


def test_any_depth_of_six_n_plus_two():
    cifar_resnet(Builder(True), images(), 10, depth=32)
    assert sum(v.size for v in nn.get_parameters().values()) == 464_154
    for depth in (2, 18, 21):
        with pytest.raises(ValueError, match=f"depth={depth} is not 6n"):
            cifar_resnet(Builder(True), images(), 10, depth=depth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet50"}, "unknown model 'resnet50'; known: resnet8_32, .*mobilenetv2_224"),
        ({"x": nn.Variable((2, 3))}, r"x must be \(B, 3, H, W\); got the shape \(2, 3\)"),
        ({"width": 0}, "width=0 is not a positive number"),
        ({"width": float("nan")}, "width=nan"),
        ({"classes": 0}, "classes=0"),
        ({"stem_stride": 0}, "stem_stride=0"),
        ({"name": "resnet18_224", "stem_stride": 2}, "resnet18_224: stem_stride=2 is for resnet8"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"name": "resnet8_32", "x": images(), "classes": 4, "train": True, **change}
    with pytest.raises(ValueError, match=message):
        build(**arguments)
    assert not nn.get_parameters()
