"""IIR-SNN: published parameter counts, and every step of the chain from ANN to one time step."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install torch")

from snnkit import nn as snn  # noqa: E402
from snnkit.errors import UsageError  # noqa: E402
from snnkit.models import create, iir_training, names  # noqa: E402
from snnkit.models.iir_snn import (  # noqa: E402
    IIRNet,
    fuse_bn,
    neurons,
    next_stage,
    spiking,
    thresholds_by_percentile,
)
from snnkit.models.iir_training import Schedule, Stage, accuracy, train_chain  # noqa: E402


def count(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create(name, **options).parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters", "layers"),
    [
        ("iir-vgg9", {}, 32_067_474, 9),
        ("iir-vgg11", {}, 36_197_012, 10),
        ("iir-vgg16", {}, 39_921_502, 15),
        ("iir-vgg16", {"num_classes": 100}, 40_290_142, 15),
        ("iir-vgg16-imagenet", {"num_classes": 1000}, 138_348_382, 15),
        ("iir-vgg16", {"steps": None, "batch_norm": True}, 39_925_696, 0),
    ],
)
def test_parameter_counts_of_the_paper(name, options, parameters, layers) -> None:
    assert count(name, **options) == parameters
    with torch.device("meta"):
        model = create(name, **options)
    found = neurons(model)
    assert len(found) == layers
    assert all(n.threshold.shape == n.leak.shape == () for n in found)
    assert all(n.leak.requires_grad and n.threshold.requires_grad for n in found)


def test_resnet20_has_the_layers_described() -> None:
    """3 convolutions of 64; per block 2 of 3x3, and a 1x1 where the shape changes; one neuron
    layer per 3x3 convolution."""
    model = create("iir-resnet20", dropout=0.0)
    kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels.count(3) == 19 and kernels.count(1) == 3 and len(neurons(model)) == 19
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_names() -> None:
    assert {"iir-vgg9", "iir-vgg11", "iir-vgg16", "iir-resnet20", "iir-vgg5"} <= set(names())
    for name in ("iir-vgg7", "nothing", ""):
        with pytest.raises(UsageError, match="iir-vgg16"):
            create(name)


def images(n: int = 48, shape=(1, 8, 8), seed: int = 0) -> torch.Tensor:
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))


def small(steps: int | None = 5, seed: int = 0, **options) -> IIRNet:
    torch.manual_seed(seed)
    return create("iir-vgg5", steps=steps, input_shape=(1, 8, 8), **options)


def alive(steps: int = 5) -> tuple[IIRNet, torch.Tensor]:
    """A net whose layers fire, and images."""
    model, x = small(steps).eval(), images()
    thresholds_by_percentile(model, x, 80.0)
    return model, x


@pytest.mark.parametrize("name", ["iir-vgg5", "iir-resnet20"])
def test_fusing_batch_norm_changes_nothing(name: str) -> None:
    torch.manual_seed(1)
    shape = (1, 8, 8) if name == "iir-vgg5" else (3, 16, 16)
    ann = create(name, steps=None, batch_norm=True, input_shape=shape).double()
    for module in ann.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for p in (module.weight, module.running_var):
                p.data.uniform_(0.5, 2.0)
            for p in (module.bias, module.running_mean):
                p.data.uniform_(-0.5, 0.5)
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    ann.eval()
    fused = fuse_bn(ann)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    x = images(6, shape).double()
    y = ann(x)
    assert torch.allclose(fused(x), y, rtol=1e-9, atol=1e-9 * float(y.detach().abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in ann.state_dict().items())
    snn_model = spiking(fused, 5)
    convs = [[m for m in net.modules() if hasattr(m, "kernel_size")] for net in (fused, snn_model)]
    for a, b in zip(*convs, strict=True):
        if isinstance(a, torch.nn.Conv2d):
            assert torch.equal(a.weight.float(), b.weight) and torch.equal(a.bias.float(), b.bias)


def test_a_batch_norm_with_nothing_to_go_into_is_refused() -> None:
    odd = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="'1'"):
        fuse_bn(odd)
    with pytest.raises(UsageError, match="fuse_bn"):
        spiking(small(None, batch_norm=True), 5)


@pytest.mark.parametrize("steps", [1, 4])
def test_thresholds_are_percentiles_layer_by_layer(steps: int) -> None:
    """Against a loop over single steps that sorts the pre-activations."""
    model, x = small(steps).eval(), images(20)
    found = thresholds_by_percentile(model, x, 90.0)
    assert found == [pytest.approx(n.threshold.item()) for n in neurons(model)]
    other = small(steps).eval()
    snn.set_multi_step(other, False)
    parts = [m for m in other.layers if not isinstance(m, snn.TimeDropout)]
    with torch.no_grad():
        for at in [i for i, m in enumerate(parts) if isinstance(m, snn.IIRNeuron)]:
            snn.reset_net(other)
            largest = 0.0
            for _ in range(steps):
                h = x
                for module in parts[:at]:
                    h = (
                        torch.nn.Sequential.forward(module, h)
                        if len([*module.children()])
                        else (module(h))
                    )
                values = np.sort(h.numpy().ravel())
                index = round(0.9 * (len(values) - 1))
                largest = max(largest, float(values[index]))
            parts[at].threshold.fill_(largest)
    expected = [n.threshold.item() for n in neurons(other)]
    assert found == pytest.approx(expected, rel=1e-5) and min(found) > 0
    assert len(set(found)) == len(found)


def test_a_threshold_of_zero_becomes_a_tenth() -> None:
    model = small(2).eval()
    for p in model.layers[0].parameters():
        p.data.zero_()
    assert thresholds_by_percentile(model, images())[0] == pytest.approx(0.1)


def rates(model: IIRNet, x: torch.Tensor) -> list[float]:
    seen: list[float] = []
    hooks = [
        n.register_forward_hook(lambda _, __, s: seen.append(float(s.mean())))
        for n in neurons(model)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_layer_fires_at_every_length() -> None:
    model, x = alive(5)
    for steps in (5, 4, 3, 2, 1):
        model = model if steps == 5 else next_stage(model, steps)
        assert len(rates(model, x)) == 4 and min(rates(model, x)) > 0.01, (steps, rates(model, x))


def test_logits_are_the_sum_over_single_steps() -> None:
    model, x = alive(4)
    with torch.no_grad():
        logits = model(x)
        snn.reset_net(model)
        snn.set_multi_step(model, False)
        total = torch.zeros_like(logits)
        for _ in range(4):
            h = x
            for module in model.layers:
                folded = isinstance(module, snn.Folded)
                h = torch.nn.Sequential.forward(module, h) if folded else module(h)
            total += h
    assert torch.allclose(logits, total, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert logits.abs().max() > 0


def test_presentations_of_different_length_share_no_state() -> None:
    model, x = alive(5)
    with torch.no_grad():
        five = model(x)
        short = next_stage(model, 2)
        two = short(x)
        assert torch.equal(model(x), five) and torch.equal(short(x), two)
        assert not torch.equal(five, two)
        assert torch.allclose(model(x[:7]), five[:7], rtol=1e-5, atol=1e-5 * float(five.max()))


def test_the_leak_matters_from_two_steps_on() -> None:
    model, x = alive(2)
    one = next_stage(model, 1)
    for net, zero in ((one, True), (model, False)):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 10).backward()
        # the last neurons feed a plain sum; all leaks alike
        assert [n.leak.grad.item() == 0.0 for n in neurons(net)] == [zero] * 4
        assert all(n.threshold.grad.item() != 0.0 for n in neurons(net))
    with torch.no_grad():
        before = one(x), model(x)
        for net in (one, model):
            for n in neurons(net):
                n.leak.fill_(0.5)
        assert torch.equal(one(x), before[0]) and not torch.equal(model(x), before[1])


def test_the_next_stage_starts_from_the_one_before() -> None:
    model, x = alive(5)
    for i, n in enumerate(neurons(model)):
        n.leak.data.fill_(0.9 - 0.1 * i)
    model(x)
    following = next_stage(model, 3)
    assert following.steps == 3 and model.steps == 5
    for (k, a), (_, b) in zip(
        model.state_dict().items(), following.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), k
    neurons(following)[0].leak.data.fill_(0.1)
    assert neurons(model)[0].leak.item() == pytest.approx(0.9)
    for steps in (5, 6, 0):
        with pytest.raises(UsageError, match="fewer steps"):
            next_stage(model, steps)


class Loader:
    """scikit-learn's digits in a fixed order."""

    def __init__(self, start: int, stop: int):
        datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
        data = datasets.load_digits()
        x = torch.from_numpy(data.images[start:stop, None].astype(np.float32) / 16)
        self.batches = list(
            zip(x.split(32), torch.from_numpy(data.target[start:stop]).split(32), strict=True)
        )

    def __iter__(self):
        return iter(self.batches)


QUICK = Schedule(
    Stage(0, 8, 0.05, "sgd", 5e-4, 0.0),
    tuple(Stage(t, 1, 2e-3, dropout=0.0) for t in (3, 2, 1)),
    calibration=128,
)


def test_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage begins with the weights, thresholds and leaks of the one before; thresholds are
    found once; the last net still tells digits apart at one time step."""
    calls = []
    original = iir_training.thresholds_by_percentile

    def noted(model, x, percentile):
        calls.append((model.steps, len(x), percentile))
        return original(model, x, percentile)

    monkeypatch.setattr(iir_training, "thresholds_by_percentile", noted)
    train, held_out = Loader(0, 640), Loader(640, 800)
    state = torch.random.get_rng_state()
    done = train_chain("iir-vgg5", train, held_out, QUICK, seed=1, input_shape=(1, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [s.steps for s in done] == [0, 3, 2, 1] and calls == [(3, 128, 90.0)]
    fused = fuse_bn(done[0].model).state_dict()
    for key, value in fused.items():
        assert torch.equal(done[1].start[key], value), key
    for before, after in itertools.pairwise(done[1:]):
        final = before.model.state_dict()
        assert {k.rsplit(".")[-1] for k in final} == {"weight", "bias", "threshold", "leak"}
        assert list(final) == list(after.start)
        for key, value in final.items():
            assert torch.equal(after.start[key], value), key
            moved = not torch.equal(after.model.state_dict()[key], value)
            assert moved or (after.steps == 1 and key.endswith("leak")), key
    for stage in done:
        assert accuracy(stage.model, held_out) == stage.accuracy
    assert done[0].accuracy > 0.9 and done[-1].accuracy > 0.8
    assert min(rates(done[-1].model, held_out.batches[0][0])) > 0.01


def test_the_chain_is_a_function_of_its_seed() -> None:
    train, held_out = Loader(0, 96), Loader(640, 700)
    quick = Schedule(Stage(0, 1, 0.05, "sgd"), (Stage(2, 1, 1e-3), Stage(1, 1, 1e-3)))
    runs = [
        train_chain("iir-vgg5", train, held_out, quick, seed=s, input_shape=(1, 8, 8))
        for s in (3, 3, 4)
    ]
    first, again, other = (r[-1].model.state_dict() for r in runs)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_leaks_are_clamped_after_each_step() -> None:
    model, x = alive(3)
    y = torch.arange(len(x)) % 10
    seen = []
    for n in neurons(model):
        n.register_forward_pre_hook(lambda module, _: seen.append(module.leak.item()))
    stage = Stage(3, 3, 0.05)
    iir_training.train_stage(model, stage, [(x, y)] * 3, [(x, y)])
    assert max(seen) == 1.0 and min(seen) < 1.0


def test_a_schedule_is_data() -> None:
    plain = json.loads(json.dumps(QUICK.to_dict()))
    assert Schedule.from_dict(plain) == QUICK
    full = Schedule()
    assert [s.steps for s in full.chain] == [5, 4, 3, 2, 1] and full.percentile == 90.0
    assert (full.ann.optimiser, full.chain[0].optimiser) == ("sgd", "adam")
    for steps in ([5, 5, 1], [1, 2], [3, 0], []):
        with pytest.raises(UsageError, match="decreasing"):
            Schedule(chain=tuple(Stage(t, 1, 1e-3) for t in steps))
    with pytest.raises(UsageError, match="schedule"):
        Schedule.from_dict({"ann": plain["ann"]})
    with pytest.raises(UsageError, match="schedule"):
        Schedule.from_dict({**plain, "speed": 3})
