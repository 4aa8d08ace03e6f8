"""The convolutions and the networks, against torch's own layers and against impulses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from colour_regression import RegressionCNN
from colourization import (CNN, DUNet, DilatedUNet, MyConv2d, MyDilatedConv2d, UNet, add_prior,
                           architecture, summary_table, up)


def gradients(function, *tensors):
    """The function's value, and its gradients for a fixed random direction."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    return [out.detach(), *(t.grad for t in tensors)]


def assert_same(ours, reference):
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('padding', [None, 0, 2])
@pytest.mark.parametrize('size', [(8, 8), (9, 13)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_convolution_equals_nn_conv2d(kernel, padding, size, memory_format):
    layer = MyConv2d(3, 5, kernel, padding).to(torch.float64, memory_format=memory_format)
    reference = nn.Conv2d(3, 5, kernel, padding=kernel // 2 if padding is None else padding).double()
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    ours = gradients(lambda x, w, b: torch.func.functional_call(layer, {'weight': w, 'bias': b}, x),
                     x, layer.weight, layer.bias)
    theirs = gradients(
        lambda x, w, b: torch.func.functional_call(reference, {'weight': w, 'bias': b}, x),
        x, reference.weight, reference.bias)
    assert_same(ours, theirs)


@pytest.mark.parametrize('layer', [MyConv2d(16, 50, 5), MyDilatedConv2d(16, 50, 5, dilation=2)])
def test_initial_weights_are_uniform_within_the_bound(layer):
    bound = 1 / math.sqrt(16 * 5 * 5)
    assert layer.weight.shape == (50, 16, 5, 5) and layer.bias.shape == (50,)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.9 * bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform one


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('dilation', [0, 1, 2, 3, 4])
@pytest.mark.parametrize('size', [(8, 8), (9, 13)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_dilated_convolution_equals_conv2d_with_gaps(kernel, dilation, size, memory_format):
    layer = MyDilatedConv2d(3, 5, kernel, dilation).to(torch.float64, memory_format=memory_format)
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    ours = gradients(lambda x, w, b: torch.func.functional_call(layer, {'weight': w, 'bias': b}, x),
                     x, layer.weight, layer.bias)
    gaps = dilation + 1
    theirs = gradients(
        lambda x, w, b: F.conv2d(x, w, b, dilation=gaps, padding=kernel // 2 * gaps),
        x, layer.weight, layer.bias)
    assert ours[0].shape == (2, 5, *size)
    assert_same(ours, theirs)


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('dilation', [None, 0, 1, 2, 3, 4])
def test_gradients_are_those_of_finite_differences(kernel, dilation):
    layer = (MyConv2d(2, 1, kernel) if dilation is None else
             MyDilatedConv2d(2, 1, kernel, dilation)).double()
    x = torch.randn(1, 2, 4, 5, dtype=torch.double, requires_grad=True)
    call = lambda x, w, b: torch.func.functional_call(layer, {'weight': w, 'bias': b}, x)
    assert torch.autograd.gradcheck(call, (x, layer.weight, layer.bias))


def test_dilated_convolution_does_without_the_dilation_of_torch(monkeypatch):
    calls = []
    real = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *a, **k: calls.append((a, k)) or real(*a, **k))
    MyDilatedConv2d(2, 2, 3, dilation=3)(torch.zeros(1, 2, 9, 9))
    (arguments, keywords), = calls
    assert len(arguments) <= 5 and keywords.get('dilation', 1) == 1  # the sixth is dilation


FIGURE_1 = {  # rows and columns of the taps of a 3x3 filter around its centre
    0: [-1, 0, 1],
    1: [-2, 0, 2],
    3: [-4, 0, 4],
}


@pytest.mark.parametrize('dilation', FIGURE_1)
def test_taps_are_where_figure_1_draws_them(dilation):
    layer = MyDilatedConv2d(1, 1, 3, dilation)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    impulse = torch.zeros(1, 1, 15, 15)
    impulse[0, 0, 7, 7] = 1
    expected = torch.zeros(15, 15)
    for row in FIGURE_1[dilation]:
        for column in FIGURE_1[dilation]:
            expected[7 + row, 7 + column] = 1
    assert torch.equal(layer(impulse)[0, 0], expected)


@pytest.mark.parametrize('kernel, dilation', [(2, 1), (4, 0), (3, -1)])
def test_dilated_convolution_refuses_even_kernels_and_negative_dilation(kernel, dilation):
    with pytest.raises(ValueError):
        MyDilatedConv2d(1, 1, kernel, dilation)


# ---------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------

@pytest.mark.parametrize('training', [True, False])
def test_up_stage_equals_its_layers_in_the_order_in_which_they_stand(training):
    ours = up(6, 5, 3).double().train(training)
    reference = nn.Sequential(*copy.deepcopy(ours)).train(training)
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64)
    results = [[*gradients(stage, x), *(p.grad for p in stage.parameters())] for stage in (ours, reference)]
    assert results[0][0].shape == (3, 5, 16, 16)
    assert_same(*results)
    norm, other = ours[2], reference[2]
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    n, start = 3 * 8 * 8, 0.9 * training  # pixels of a map; what is left of the initial variance
    factor = n / (n - 1) / (4 * n / (4 * n - 1)) if training else 1
    torch.testing.assert_close(norm.running_var - start, factor * (other.running_var - start))


def test_part_of_an_up_stage_is_its_layers():
    stage, x = up(6, 5, 3), torch.randn(2, 6, 8, 8)
    assert torch.equal(stage[:2](x), stage[1](stage[0](x)))


def stage(name, conv, norm, inputs, outputs):
    """Names and shapes of a stage with a convolution at place `conv`, a batch norm at `norm`."""
    return {
        f'{name}.{conv}.weight': (outputs, inputs, 3, 3),
        f'{name}.{conv}.bias': (outputs,),
        f'{name}.{norm}.weight': (outputs,),
        f'{name}.{norm}.bias': (outputs,),
        f'{name}.{norm}.running_mean': (outputs,),
        f'{name}.{norm}.running_var': (outputs,),
        f'{name}.{norm}.num_batches_tracked': (),
    }


CNN_STATE = {  # 32 filters, 24 colours
    **stage('downconv1', 0, 2, 1, 32),
    **stage('downconv2', 0, 2, 32, 64),
    **stage('rfconv', 0, 1, 64, 64),
    **stage('upconv1', 0, 2, 64, 32),
    **stage('upconv2', 0, 2, 32, 24),
    'finalconv.weight': (24, 24, 3, 3),
    'finalconv.bias': (24,),
}
UNET_STATE = CNN_STATE | {
    'upconv1.0.weight': (32, 128, 3, 3),
    'upconv2.0.weight': (24, 64, 3, 3),
    'finalconv.weight': (24, 25, 3, 3),
}
REGRESSION_STATE = CNN_STATE | stage('upconv2', 0, 2, 32, 3) | {
    'finalconv.weight': (3, 3, 3, 3),
    'finalconv.bias': (3,),
}


@pytest.mark.parametrize('model, expected', [
    (CNN(3, 32, 24), CNN_STATE), (UNet(3, 32, 24), UNET_STATE), (DUNet(3, 32, 24), UNET_STATE),
    (RegressionCNN(3, 32), REGRESSION_STATE)])
def test_state_dict_has_the_names_and_shapes_of_the_course(model, expected):
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected


def test_dunet_is_the_dilated_unet():
    assert DUNet is DilatedUNet
    assert isinstance(DUNet(3, 4, 5).rfconv[0], MyDilatedConv2d)
    assert DUNet(3, 4, 5).rfconv[0].dilation == 1


def torch_stage(state, name, x, change):
    """A stage in eval mode, written with torch's functions in the handout's order."""
    norm = 1 if name == 'rfconv' else 2
    dilation = 1
    if name == 'dilated':
        name, norm, dilation = 'rfconv', 1, 2
    x = F.conv2d(x, state[f'{name}.0.weight'], state[f'{name}.0.bias'],
                 padding=dilation, dilation=dilation)
    x = change(x)
    x = F.batch_norm(x, state[f'{name}.{norm}.running_mean'], state[f'{name}.{norm}.running_var'],
                     state[f'{name}.{norm}.weight'], state[f'{name}.{norm}.bias'])
    return F.relu(x)


def torch_network(state, x, skips, middle='rfconv'):
    pool = lambda x: F.max_pool2d(x, 2)
    grow = lambda x: F.interpolate(x, scale_factor=2, mode='nearest')
    join = (lambda *xs: torch.cat(xs, dim=1)) if skips else (lambda first, _: first)
    down1 = torch_stage(state, 'downconv1', x, pool)
    down2 = torch_stage(state, 'downconv2', down1, pool)
    inner = torch_stage(state, middle, down2, lambda x: x)
    up1 = torch_stage(state, 'upconv1', join(inner, down2), grow)
    up2 = torch_stage(state, 'upconv2', join(up1, down1), grow)
    return F.conv2d(join(up2, x), state['finalconv.weight'], state['finalconv.bias'], padding=1)


@pytest.mark.parametrize('model, skips, middle', [
    (CNN(3, 8, 5), False, 'rfconv'), (UNet(3, 8, 5), True, 'rfconv'),
    (DUNet(3, 8, 5), True, 'dilated'), (RegressionCNN(3, 8), False, 'rfconv')])
def test_forward_equals_the_network_written_with_torch_functions(model, skips, middle):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if 'running_mean' in name:
                tensor.uniform_(-0.1, 0.1)
            if 'running_var' in name:
                tensor.uniform_(0.05, 0.2)
    x = torch.rand(2, 1, 32, 32)
    ours = model.eval()(x)
    assert ours.std() > 0.1  # the layers do not hide each other
    torch.testing.assert_close(ours, torch_network(model.state_dict(), x, skips, middle))


def receptive_field(model, pixel=32):
    """Rows and columns of a 64x64 input that an output pixel on the diagonal depends on, measured.

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
    rows, columns = x.grad[0, 0].nonzero().T
    return (rows.min().item(), rows.max().item()), (columns.min().item(), columns.max().item())


# By hand, from the output back: 32 sees 31..33 before finalconv, which is 15..16 half as large;
# upconv2 14..17, which is 7..8 of a quarter; upconv1 6..9; rfconv 5..10 (dilated: 4..11);
# the pooling 10..21 (8..23), downconv2 9..22 (7..24), the pooling 18..45 (14..49), downconv1
# 17..46 (13..50).
@pytest.mark.parametrize('model, expected', [
    (CNN(3, 2, 3), (17, 46)), (UNet(3, 2, 3), (17, 46)), (DUNet(3, 2, 3), (13, 50))])
def test_receptive_field_is_what_counting_by_hand_gives(model, expected):
    assert receptive_field(model) == (expected, expected)


# Handout, part D.1: weights per pair of channels, and the side of the receptive field.
@pytest.mark.parametrize('layer, weights, side', [
    (MyConv2d(1, 1, 3), 9, 3), (MyConv2d(1, 1, 5), 25, 5), (MyDilatedConv2d(1, 1, 3, 1), 9, 5)])
def test_weights_and_receptive_field_of_part_d(layer, weights, side):
    x = torch.zeros(1, 1, 15, 15, requires_grad=True)
    layer(x)[0, 0, 7, 7].backward()
    rows, columns = x.grad[0, 0].nonzero().T
    assert layer.weight.numel() == weights
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side


HAND_COUNTED = {  # RegressionCNN, 32 filters: side of the maps, weights, biases, receptive field
    'downconv1': [(32, 1 * 32 * 9, 32, '3'), (16, 0, 0, '4'), (16, 32, 32, '4'), (16, 0, 0, '4')],
    'downconv2': [(16, 32 * 64 * 9, 64, '8'), (8, 0, 0, '10'), (8, 64, 64, '10'), (8, 0, 0, '10')],
    'rfconv': [(8, 64 * 64 * 9, 64, '18'), (8, 64, 64, '18'), (8, 0, 0, '18')],
    'upconv1': [(8, 64 * 32 * 9, 32, '26'), (16, 0, 0, '26'), (16, 32, 32, '26'), (16, 0, 0, '26')],
    'upconv2': [(16, 32 * 3 * 9, 3, '30'), (32, 0, 0, '30'), (32, 3, 3, '30'), (32, 0, 0, '30')],
    'finalconv': [(32, 3 * 3 * 9, 3, '30 or 34')],
}


def test_summary_of_the_regression_network_is_what_counting_by_hand_gives():
    rows = architecture(RegressionCNN(3, 32))
    expected = [(stage, *row) for stage, rows in HAND_COUNTED.items() for row in rows]
    assert [(row['stage'], int(row['output'].split('x')[1]), row.get('weights', 0), row.get('biases', 0),
             row['receptive field']) for row in rows] == expected
    assert [row['filters'] for row in rows if 'filters' in row] == [32, 64, 64, 32, 3, 3]
    assert {row['filter'] for row in rows if 'filter' in row} == {'3x3'}
    assert summary_table(RegressionCNN(3, 32)).splitlines()[-1].split() == ['total', '75156', '393']


@pytest.mark.parametrize('make, kernel', [(CNN, 1), (CNN, 3), (CNN, 5), (UNet, 3), (DUNet, 3)])
def test_receptive_field_of_the_summary_is_that_of_the_gradients(make, kernel):
    *_, last = architecture(make(kernel, 2, 3))
    spans = [receptive_field(make(kernel, 2, 3), pixel)[0] for pixel in range(30, 34)]
    sides = sorted({high - low + 1 for low, high in spans})
    assert last['receptive field'] == ' or '.join(map(str, sides))


@pytest.mark.parametrize('make', [CNN, UNet, DUNet])
def test_summary_counts_every_parameter_and_shows_the_sizes_that_run_through(make):
    model = make(3, 4, 5)
    add_prior(model, torch.zeros(7, 5))
    rows = architecture(model)
    assert sum(row.get(name, 0) for row in rows for name in ('weights', 'biases')) == sum(
        p.numel() for p in model.parameters())
    for stage in (model.upconv1, model.upconv2):
        stage.forward = nn.Sequential.forward.__get__(stage)  # in the order in which the layers stand
    shapes = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[1:]))
    model(torch.zeros(1, 1, 32, 32))
    assert [row['output'] for row in rows[:-1]] == ['x'.join(map(str, shape)) for shape in shapes]
