"""The convolutions and the networks, against torch's own layers and against impulses.

    python -m pytest tests/test_layers.py --solution FILE.py

tests those of a student's file instead of ours; `course` gives the one or the other.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from colour_regression import RegressionCNN
from colourization import (CNN, MODELS, DUNet, MyConv2d, MyDilatedConv2d, UNet, add_prior,
                           architecture, summary_table, up)

only_ours = pytest.mark.only_ours


@pytest.fixture
def dtype(pytestconfig):
    """Ours are compared in float64; a student's own tensors of zeros are likely to be float32."""
    return torch.float32 if pytestconfig.option.solution else torch.float64


def same(a, b):
    """Whether two tensors differ by no more than rounding, which the order of additions decides."""
    tolerance = 1e-4 if b.dtype == torch.float32 else 1e-9
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def results(model, x):
    """What a layer or a network returns, and its gradients for a fixed random direction."""
    who, x = type(model).__name__, x.clone().requires_grad_()
    output = model(x)
    assert isinstance(output, torch.Tensor), f'{who}: forward returns {output!r:.40}'
    if output.requires_grad:
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    gradients = {'the input': x.grad} | {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None, (
            f'{who}: no gradient reaches {name}: it is not used, or .data, .detach() or a copy cuts it off')
    return output.detach(), gradients


def assert_same_gradients(who, gradients, expected):
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        assert same(gradients[name] / largest, expected[name] / largest), (
            f"{who}: the gradient of {name} is not that of torch's layers")


def assert_same_convolution(layer, x, *, step=1, padding):
    """Compare with torch's convolution whose taps are `step` pixels apart."""
    who, (outputs, inputs, kernel, _) = type(layer).__name__, layer.weight.shape
    reference = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=step).to(x.dtype)
    assert_state(layer, shapes(reference))
    reference.load_state_dict(layer.state_dict())
    output, gradients = results(layer, x)
    expected, expected_gradients = results(reference, x)
    assert same(output, expected), f'{who}: {what_differs(output, x, layer, step, padding)}'
    assert_same_gradients(who, gradients, expected_gradients)


@torch.no_grad()
def what_differs(output, x, layer, step, padding):
    """What a wrong convolution does instead, found by trying other settings of torch's."""
    kernel = layer.weight.shape[-1]
    for other in [step, *range(1, 8)]:
        for pad in range(20):
            if (kernel - 1) * other >= min(x.shape[2:]) + 2 * pad or not same(
                    output, F.conv2d(x, layer.weight, layer.bias, padding=pad, dilation=other)):
                continue
            if other != step:
                return (f'{other - 1} pixels lie between neighbouring taps instead of {step - 1} '
                        f'(kernel {kernel}, dilation {step - 1}; see Figure 1)')
            if step > 1 and pad == kernel // 2:
                return (f'the padding does not grow with the dilation: it is {pad} instead of {padding} '
                        f'(kernel {kernel}, dilation {step - 1})')
            return f'the padding is {pad} instead of {padding} (kernel {kernel})'
    size = 'x'.join(map(str, output.shape[2:]))
    return f"the output of {size} pixels is not that of torch's layer (kernel {kernel}, padding {padding})"


@pytest.mark.parametrize('kernel', [3, 1, 5, 7])
@pytest.mark.parametrize('padding', [None, 0, 2])
@pytest.mark.parametrize('size', [(8, 8), (9, 13)])
def test_convolution_equals_nn_conv2d(course, kernel, padding, size, dtype):
    layer = course('MyConv2d')(3, 5, kernel, padding).to(dtype)
    padding = kernel // 2 if padding is None else padding
    assert_same_convolution(layer, torch.randn(2, 3, *size, dtype=dtype), padding=padding)


@pytest.mark.parametrize('name, dilation', [('MyConv2d', {}), ('MyDilatedConv2d', {'dilation': 2})])
def test_initial_weights_are_uniform_within_the_bound(course, name, dilation):
    layer = course(name)(16, 500, 5, **dilation)  # of 50 biases all are within 0.9 once in 200 times
    assert_state(layer, {'weight': (500, 16, 5, 5), 'bias': (500,)})
    bound = 1 / math.sqrt(16 * 5 * 5)
    for parameter in (layer.weight, layer.bias):
        assert 0.9 * bound < parameter.abs().max() <= bound, f'{name}: does not start within 1/sqrt(I*k*k)'
    spread = layer.weight.std().item()
    assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05), f'{name}: does not start uniform'


@pytest.mark.parametrize('kernel', [3, 1, 5, 7])
@pytest.mark.parametrize('dilation', [1, 0, 2, 3, 4])
@pytest.mark.parametrize('size', [(8, 8), (9, 13)])
def test_dilated_convolution_equals_conv2d_with_gaps(course, kernel, dilation, size, dtype):
    layer = course('MyDilatedConv2d')(3, 5, kernel, dilation).to(dtype)
    assert_same_convolution(layer, torch.randn(2, 3, *size, dtype=dtype), step=dilation + 1,
                            padding=kernel // 2 * (dilation + 1))


class Dilations(TorchFunctionMode):
    """Notes the dilation of every convolution, however it is called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d:
            self.seen.append(args[5] if len(args) > 5 else (kwargs or {}).get('dilation', 1))
        return function(*args, **(kwargs or {}))


def test_dilated_convolution_does_without_the_dilation_of_torch(course):
    layer = course('MyDilatedConv2d')(2, 2, 3, dilation=3)
    with Dilations() as dilations:
        layer(torch.zeros(1, 2, 9, 9))
    assert set(dilations.seen) <= {1, (1, 1)}, (
        "MyDilatedConv2d: it uses torch's dilation; part G gives credit for spreading the filter yourself")


@only_ours
@pytest.mark.parametrize('kernel, dilation', [(2, 1), (4, 0), (3, -1)])
def test_dilated_convolution_refuses_even_kernels_and_negative_dilation(kernel, dilation):
    with pytest.raises(ValueError):
        MyDilatedConv2d(1, 1, kernel, dilation)


# ---- Models ----

@only_ours
@pytest.mark.parametrize('training', [True, False])
def test_up_stage_equals_its_layers_in_the_order_in_which_they_stand(training):
    ours = up(6, 5, 3).double().train(training)
    reference = nn.Sequential(*copy.deepcopy(ours)).train(training)
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64)
    output, gradients = results(ours, x)
    expected, expected_gradients = results(reference, x)
    assert output.shape == (3, 5, 16, 16)
    assert same(output, expected)
    assert_same_gradients('up', gradients, expected_gradients)
    norm, other = ours[2], reference[2]
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    n, start = 3 * 8 * 8, 0.9 * training  # pixels of a map; what is left of the initial variance
    factor = n / (n - 1) / (4 * n / (4 * n - 1)) if training else 1
    torch.testing.assert_close(norm.running_var - start, factor * (other.running_var - start))


@only_ours
def test_part_of_an_up_stage_is_its_layers():
    stage, x = up(6, 5, 3), torch.randn(2, 6, 8, 8)
    assert torch.equal(stage[:2](x), stage[1](stage[0](x)))


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def assert_state(model, expected):
    who, state = type(model).__name__, shapes(model)
    for name, shape in expected.items():
        mean = name.rpartition('.')[0] + '.running_mean'
        what = ' (no batch norm there)' if mean in expected and mean not in state else ''
        assert name in state, f'{who}: {name} is not in its state dict{what}'
        assert state[name] == shape, f'{who}: {name} has the shape {state[name]} instead of {shape}'
    assert state == expected, f'{who}: the course has no {", ".join(state.keys() - expected.keys())}'


class Reference(nn.Module):
    """The networks of the handout, of torch's own layers."""

    def __init__(self, kernel, num_filters, num_colours, *, skips=False, dilation=0):
        super().__init__()
        self.skips = skips
        def stage(inputs, outputs, *resize, step=1):
            convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * step, dilation=step)
            return nn.Sequential(convolution, *resize, nn.BatchNorm2d(outputs), nn.ReLU())
        self.downconv1 = stage(1, num_filters, nn.MaxPool2d(2))
        self.downconv2 = stage(num_filters, 2 * num_filters, nn.MaxPool2d(2))
        self.rfconv = stage(2 * num_filters, 2 * num_filters, step=dilation + 1)
        self.upconv1 = stage(2 * num_filters * (1 + skips), num_filters, nn.Upsample(scale_factor=2))
        self.upconv2 = stage(num_filters * (1 + skips), num_colours, nn.Upsample(scale_factor=2))
        self.finalconv = nn.Conv2d(num_colours + skips, num_colours, kernel, padding=kernel // 2)

    def forward(self, x):
        join = (lambda *maps: torch.cat(maps, dim=1)) if self.skips else (lambda first, _: first)
        down1 = self.downconv1(x)
        down2 = self.downconv2(down1)
        up1 = self.upconv1(join(self.rfconv(down2), down2))
        up2 = self.upconv2(join(up1, down1))
        return self.finalconv(join(up2, x))


def stages(model, x):
    """What goes into each stage and what comes out of it, as far as the network calls them as modules."""
    seen = {}
    hooks = [stage.register_forward_hook(
        lambda _, inputs, output, name=name: seen.update({name: (inputs[0].detach(), output.detach())}))
        for name, stage in model.named_children()]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


def describe(layer):
    dilated = isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1)
    return (type(layer).__name__ + ' (dilation 1: one pixel left out)' * dilated
            + ' (nearest)' * isinstance(layer, nn.Upsample))


PREVIOUS = {'downconv1': ['the grey input'], 'downconv2': ['downconv1'], 'rfconv': ['downconv2'],
            'upconv1': ['rfconv', 'downconv2'], 'upconv2': ['upconv1', 'downconv1'],
            'finalconv': ['upconv2', 'the grey input']}


def assert_same_network(model, reference, x):
    """Compare with the reference, whose weights it gets, stage by stage to name the first that differs."""
    who = type(model).__name__
    assert_state(model, shapes(reference))
    model.load_state_dict(reference.state_dict())
    for name, norm in reference.named_modules():
        for what in {'momentum', 'eps'} & vars(norm).keys():
            found, wanted = getattr(model.get_submodule(name), what), getattr(norm, what)
            assert found == wanted, f'{who}: {name} has {what} {found} instead of {wanted}'
    seen = stages(model, x)
    for name, (inputs, output) in stages(reference, x).items():
        if name not in seen:
            continue
        previous = ', '.join(PREVIOUS[name] if reference.skips else PREVIOUS[name][:1])
        swapped = any(same(seen[name][0].roll(n, dims=1), inputs) for n in range(1, inputs.shape[1]))
        assert same(seen[name][0], inputs), (
            f'{who}: {name} does not get [{previous}]' + ', but its parts in another order' * swapped)
        layers = ', then '.join(describe(layer) for layer in reference.get_submodule(name).modules()
                                if not list(layer.children()))
        assert same(seen[name][1], output), f'{who}: the output of {name} is not that of {layers}'
    output, gradients = results(model, x)
    expected, expected_gradients = results(reference, x)
    assert expected.std() > 0.1  # the layers do not hide each other
    assert same(output, expected), f"{who}: the output is not that of the same network of torch's layers"
    assert_same_gradients(who, gradients, expected_gradients)


def stir(model):
    """Make batch norms do something: also turn signs, so that they do not commute with pooling."""
    for name, tensor in model.state_dict().items():
        if name.endswith('running_mean'):
            tensor.uniform_(-0.1, 0.1)
        elif name.endswith('running_var'):
            tensor.uniform_(0.05, 0.2)
        elif tensor.dim() == 1:
            tensor.uniform_(-1.5, 1.5)


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name, parts', [
    ('CNN', {}), ('UNet', {'skips': True}), ('DilatedUNet', {'skips': True, 'dilation': 1})])
def test_network_equals_that_of_torchs_layers(course, name, parts, kernel, training, dtype):
    model = course(name)(kernel, 8, 5).to(dtype).train(training)
    reference = Reference(kernel, 8, 5, **parts).to(dtype).train(training)
    stir(reference)
    assert_same_network(model, reference, torch.rand(2, 1, 32, 32, dtype=dtype))
    assert nn.Conv2d not in map(type, model.modules()), f'{name}: has nn.Conv2d instead of MyConv2d'


@only_ours
def test_regression_network_is_the_cnn_with_three_outputs():
    reference = Reference(3, 8, 3).eval()
    stir(reference)
    assert_same_network(RegressionCNN(3, 8).eval(), reference, torch.rand(2, 1, 32, 32))


@only_ours
@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.parametrize('sides', [(30, 32), (32, 33), (2, 4)])
def test_sides_that_cannot_be_halved_twice_are_refused(make, sides):
    with pytest.raises(ValueError, match=f'multiples of 4, not {sides[0]} and {sides[1]}'):
        make(3, 4, 24)(torch.zeros(1, 1, *sides))


@only_ours
@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_networks_can_be_scripted(make):
    model, grey = make(3, 4, 24).eval(), torch.rand(1, 1, 8, 8)
    assert torch.equal(torch.jit.script(model)(grey), model(grey))


def receptive_field(model, pixel):
    """How many rows of a 64x64 input an output pixel on the diagonal depends on, measured.

    Max pooling hides all but one of its inputs from the gradient, so mean pooling takes its
    place; the weights are made positive so that nothing cancels.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.MaxPool2d):
            model.set_submodule(name, nn.AvgPool2d(2))
        if isinstance(module, (MyConv2d, nn.BatchNorm2d)):
            nn.init.constant_(module.weight, 1.0)
            nn.init.constant_(module.bias, 1.0)
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    model.eval()(x)[0, 0, pixel, pixel].backward()
    rows, _ = x.grad[0, 0].nonzero().T
    return (rows.max() - rows.min() + 1).item()


@only_ours
@pytest.mark.parametrize('make, kernel', [(CNN, 1), (CNN, 3), (CNN, 5), (UNet, 3), (DUNet, 3)])
def test_receptive_field_of_the_summary_is_that_of_the_gradients(make, kernel):
    *_, last = architecture(make(kernel, 2, 3))
    sides = sorted({receptive_field(make(kernel, 2, 3), pixel) for pixel in range(30, 34)})
    assert last['receptive field'] == ' or '.join(map(str, sides))


@only_ours
@pytest.mark.parametrize('make', MODELS.values())
def test_summary_has_the_sizes_of_every_layer_as_they_run_through(make):
    model = make(3, 4, 5)
    add_prior(model, torch.zeros(7, len(model.finalconv.bias)))
    for stage in (model.upconv1, model.upconv2):
        stage.forward = nn.Sequential.forward.__get__(stage)  # in the order in which the layers stand
    seen = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *passed: seen.append(passed))
    model(torch.zeros(1, 1, 32, 32))
    *rows, prior = architecture(model)
    for row, (layer, (x,), output) in zip(rows, seen, strict=True):
        sizes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
        assert row['inputs'] == x.shape[1] and row['output'] == 'x'.join(map(str, output.shape[1:]))
        assert [row.get(name, 0) for name in ('weights', 'biases')] == [
            math.prod(sizes.get(name, (0,))) for name in ('weight', 'bias')]
        assert (row.get('filters'), row.get('filter')) == (
            (sizes['bias'][0], '3x3') if isinstance(layer, MyConv2d) else (None, None))
    assert prior['weights'] == model.prior.numel()
    count = sum(p.numel() for p in model.parameters())
    assert sum(map(int, summary_table(model).splitlines()[-1].split()[1:])) == count
