"""Models that others trained, on real images: proven in every mode, accuracy kept."""

from __future__ import annotations

import numpy as np
import pytest

import snnkit
from snnkit.certificate import quantisation_error, verify
from snnkit.converters import convert
from snnkit.graph import Graph
from tests import shared_data
from tests.shared_data import HOME, cifar, mnist, needed, scaled

MNIST = {
    "onnx2c/mnist_model": ("raw", (1, 28, 28), 0.984),
    "burn-onnx/mnist": ("mnist", (1, 28, 28), 0.988),
    "onnx-mlir/mnist": ("mnist", (1, 28, 28), 0.9035),
    "onnx2c/mnist_pytorch": ("unit", (784,), 0.8955),
    "vnncomp2021/Convnet_maxpool": ("unit", (1, 28, 28), 0.971),
    "vnncomp2021/mnist-net_256x2": ("unit", (784, 1), 0.974),
}
CIFAR = {"vnncomp2021/resnet_2b": 0.75, "vnncomp2021/cifar_base_kw": 0.73}
RANDOM = {
    "hls4ml/conv1d_small_keras": None,
    "hls4ml/conv2d_small_keras": None,
    "hls4ml/conv2d_small_mp_keras": None,
    "hls4ml/dense_big_keras": None,
    "hls4ml/three_layer_keras": None,
    "hls4ml/three_layer_pytorch": None,
    "hls4ml/two_layer_keras": None,
    "hls4ml/two_layer_pytorch": None,
    "nr-npu-nmnist/nmnist_conv1": None,
    "nr-npu-nmnist/nmnist_conv2": None,
    "nr-npu-nmnist/nmnist_conv_block": None,
    "nr-npu-nmnist/nmnist_fc2": None,
    "onnx2c/tfl_helloworld": None,
    "qonnx/espcn_float_model": None,
    "qonnx/residual_block_clean": None,
    "tract/keras_example": None,
    "vnncomp2021/ACASXU_run2a_1_1_batch_2000": None,
}
IMAGES = 500
"""Compared in onnxruntime and mode settle."""
FEWEST, NEURONS = 50, 200_000
"""Compared in all modes: so many images, and in small networks as many as make so many neurons.
Unit spikes of 255 levels take a hundred times as long as settling. What must not be missed is a
charge that lies on a threshold: an engine that fires there one too few differed within 50 images of
the smallest network."""


def proven(graph: Graph, x: np.ndarray) -> None:
    settled = verify(graph, x, modes=("settle",))
    count = max(FEWEST, NEURONS // settled.neurons_per_sample)
    for certificate in (settled, verify(graph, x[:count])):
        assert certificate.passed and not certificate.silent_layers, certificate.first_difference
        assert not certificate.skipped


@needed
@pytest.mark.parametrize("name", MNIST)
def test_mnist_models(name: str) -> None:
    scaling, shape, accuracy = MNIST[name]
    source = HOME / "onnx" / f"{name}.onnx"
    train, _ = mnist("train")
    images, labels = mnist("t10k")
    graph = convert(source, scaled(train[:512], scaling, shape), levels=255)
    x = scaled(images[:2000], scaling, shape)
    proven(graph, x[:IMAGES])
    result = snnkit.compile(graph, "numba").run(x)
    found = quantisation_error(
        graph, {graph.inputs[0].name: x}, result.outputs, labels[:2000], source
    )
    assert abs(found["float_accuracy"] - accuracy) < 1e-9
    assert found["accuracy"] >= found["float_accuracy"] - 0.0011


@needed
@pytest.mark.parametrize(("levels", "points"), [(255, 0.1), (15, 0.2), (7, 0.3), (3, 1.0)])
def test_the_zoo_model_without_retraining(levels: int, points: float) -> None:
    """8-bit weights; the first 2,000 test images; at most so many points below the float model."""
    train, _ = mnist("train")
    images, labels = mnist("t10k")
    source = HOME / "onnx" / "onnx2c" / "mnist_model.onnx"
    graph = convert(source, scaled(train[:512], "raw", (1, 28, 28)), levels=levels)
    result = snnkit.compile(graph, "numba").run(scaled(images[:2000], "raw", (1, 28, 28)))
    y = next(iter(result.outputs.values()))
    assert (y.argmax(axis=1) == labels[:2000]).mean() >= 0.984 - points / 100 - 1e-9


@needed
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_models(name: str) -> None:
    train, images, labels = cifar()
    source = HOME / "onnx" / f"{name}.onnx"
    shape = (3, 32, 32)
    graph = convert(source, scaled(train[:512], "cifar", shape), levels=255)
    x = scaled(np.concatenate([images, train[1000:1400]]), "cifar", shape)
    assert len(x) == IMAGES
    proven(graph, x)
    result = snnkit.compile(graph, "numba").run(x[:100])
    found = quantisation_error(
        graph, {graph.inputs[0].name: x[:100]}, result.outputs, labels, source
    )
    assert found["float_accuracy"] == CIFAR[name]
    assert found["accuracy"] >= CIFAR[name] - 0.02  # two of a hundred images


@needed
@pytest.mark.parametrize("name", RANDOM)
def test_other_float_models(name: str) -> None:
    """Whatever else is there of convolutions and layers: converts and proves itself."""
    source = HOME / "onnx" / f"{name}.onnx"
    from snnkit.converters.float_model import FloatModel

    model = FloatModel(source)
    rng = np.random.default_rng(0)
    shape = tuple(int(d) if isinstance(d, int) else 1 for d in model.inputs[0].dims[1:])
    x = rng.normal(0, 1, (40, *shape)).astype(np.float32)
    graph = convert(source, x)
    certificate = verify(graph, x[:10], source=source)
    assert certificate.passed, certificate.first_difference


def test_the_list_is_not_empty() -> None:
    assert len(MNIST) + len(CIFAR) + len(RANDOM) == 25
    assert shared_data.HOME.name == "data" or "SNNKIT_DATA" in shared_data.os.environ
