"""`pytest tests/test_layers.py --solution FILE`: a right one passes, a wrong one is told what is wrong."""

import pytest

import load_data
from conftest import ROOT

pytest_plugins = ['pytester']

RIGHT = '''
from __future__ import print_function
import argparse
import math

import matplotlib
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd import Variable

from load_data import *


class MyConv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, padding=None):
        super(MyConv2d, self).__init__()
        self.kernel_size = kernel_size
        self.padding = kernel_size // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.Tensor(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.Tensor(out_channels))
        stdv = 1. / math.sqrt(in_channels * kernel_size * kernel_size)
        self.weight.data.uniform_(-stdv, stdv)
        self.bias.data.uniform_(-stdv, stdv)

    def forward(self, input):
        return F.conv2d(input, self.weight, self.bias, padding=self.padding)


class MyDilatedConv2d(MyConv2d):
    def __init__(self, in_channels, out_channels, kernel_size, dilation=1):
        super(MyDilatedConv2d, self).__init__(in_channels, out_channels, kernel_size)
        self.dilation = dilation

    def forward(self, input):
        step = self.dilation + 1
        size = (self.kernel_size - 1) * step + 1
        weight = torch.zeros(self.weight.shape[0], self.weight.shape[1], size, size)
        for i in range(self.kernel_size):
            for j in range(self.kernel_size):
                weight[:, :, i * step, j * step] = self.weight[:, :, i, j]
        padding = size // 2
        return F.conv2d(input, weight, self.bias, padding=padding)


class UpConv(nn.Sequential):
    def forward(self, x):
        x = F.interpolate(self[0](x), scale_factor=2)
        for layer in self[2:]:
            x = layer(x)
        return x


class CNN(nn.Module):
    def __init__(self, kernel, num_filters, num_colours):
        super(CNN, self).__init__()
        def stage(kind, inputs, outputs, *resize):
            convolution = MyConv2d(inputs, outputs, kernel, padding=kernel // 2)
            return kind(convolution, *resize, nn.BatchNorm2d(outputs), nn.ReLU())
        self.downconv1 = stage(nn.Sequential, 1, num_filters, nn.MaxPool2d(kernel_size=2))
        self.downconv2 = stage(nn.Sequential, num_filters, num_filters * 2, nn.MaxPool2d(kernel_size=2))
        self.rfconv = stage(nn.Sequential, num_filters * 2, num_filters * 2)
        self.upconv1 = stage(UpConv, num_filters * 2, num_filters, nn.Identity())
        self.upconv2 = stage(UpConv, num_filters, num_colours, nn.Identity())
        self.finalconv = MyConv2d(num_colours, num_colours, kernel)

    def forward(self, x):
        x = self.rfconv(self.downconv2(self.downconv1(x)))
        return self.finalconv(self.upconv2(self.upconv1(x)))


class UNet(CNN):
    def __init__(self, kernel, num_filters, num_colours):
        super(UNet, self).__init__(kernel, num_filters, num_colours)
        self.upconv1[0] = MyConv2d(num_filters * 4, num_filters, kernel)
        self.upconv2[0] = MyConv2d(num_filters * 2, num_colours, kernel)
        self.finalconv = MyConv2d(num_colours + 1, num_colours, kernel)

    def forward(self, x):
        down1 = self.downconv1(x)
        down2 = self.downconv2(down1)
        middle = self.rfconv(down2)
        up1 = self.upconv1(torch.cat([middle, down2], 1))
        up2 = self.upconv2(torch.cat([up1, down1], 1))
        return self.finalconv(torch.cat([up2, x], 1))


class DilatedUNet(UNet):
    def __init__(self, kernel, num_filters, num_colours):
        super(DilatedUNet, self).__init__(kernel, num_filters, num_colours)
        self.rfconv[0] = MyDilatedConv2d(num_filters * 2, num_filters * 2, kernel, dilation=1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    args = parser.parse_args()
    load_cifar10()
'''
ONE_CLASS = RIGHT[:RIGHT.index('class MyDilatedConv2d')]


@pytest.fixture
def check(pytester):
    """Run the tests of layers on a file of this text, in this process, which spares seconds of imports."""
    def run(text, *arguments):
        if text is not None:
            (pytester.path / 'mine.py').write_text(text)
        return pytester.runpytest_inprocess(ROOT / 'tests/test_layers.py', '--solution', 'mine.py', '-q',
                                            '-p', 'no:cacheprovider', '-p', 'no:randomly', *arguments)
    return run


def test_right_solution_passes(check):
    result = check(RIGHT)
    result.stdout.fnmatch_lines(['all that was tested is right'])
    assert result.ret == 0
    assert result.parseoutcomes().keys() == {'passed', 'deselected'}


def test_collecting_claims_nothing(check):
    result = check(RIGHT, '--co')
    assert result.ret == 0 and 'right' not in result.stdout.str()


WRONG = {
    'dilation off by one': (
        'step = self.dilation + 1', 'step = max(self.dilation, 1)',
        'MyDilatedConv2d: 0 pixels lie between neighbouring taps instead of 1 (kernel 3, dilation 1; *'),
    'padding of an ordinary filter': (
        'padding = size // 2\n', 'padding = self.padding\n',
        'MyDilatedConv2d: the padding does not grow with the dilation: it is 1 instead of 2 (kernel 3, *'),
    'swapped concatenation': (
        '[up1, down1]', '[down1, up1]',
        'UNet: upconv2 does not get [[]upconv1, downconv1], but its parts in another order'),
    'no batch norm': (
        'nn.BatchNorm2d(outputs)', 'nn.Identity()',
        'CNN: downconv1.2.weight is not in its state dict (no batch norm there)'),
    'another momentum': (
        'nn.BatchNorm2d(outputs)', 'nn.BatchNorm2d(outputs, momentum=0.01)',
        'CNN: downconv1.2 has momentum 0.01 instead of 0.1'),
    'another eps': (
        'nn.BatchNorm2d(outputs)', 'nn.BatchNorm2d(outputs, eps=1e-6)',
        'CNN: downconv1.2 has eps 1e-06 instead of 1e-05'),
    'gradients cut off': (
        'self.weight[:, :, i, j]', 'self.weight.data[:, :, i, j]',
        'MyDilatedConv2d: no gradient reaches weight: it is not used, or .data, *'),
    'bias left out': (
        'F.conv2d(input, weight, self.bias, padding=padding)', 'F.conv2d(input, weight, padding=padding)',
        'MyDilatedConv2d: no gradient reaches bias: it is not used, or *'),
    "torch's dilation": (
        'F.conv2d(input, weight, self.bias, padding=padding)',
        'F.conv2d(input, self.weight, self.bias, padding=padding, dilation=step)',
        "MyDilatedConv2d: it uses torch's dilation; *"),
    'batch norm after ReLU': (
        'for layer in self[2:]:', 'for layer in self[3], self[2]:',
        'CNN: the output of upconv1 is not that of Conv2d, then Upsample (nearest), then BatchNorm2d, *'),
}


@pytest.mark.parametrize('right, wrong, line', WRONG.values(), ids=WRONG)
def test_first_thing_that_is_said_of_a_wrong_solution_is_its_mistake(check, right, wrong, line):
    assert RIGHT.count(right) == 1
    result = check(RIGHT.replace(right, wrong), '-x')
    assert result.ret == 1
    result.stdout.fnmatch_lines(['*= mine.py =*', line], consecutive=True)


def test_what_a_file_does_not_define_is_named(check):
    result = check(ONE_CLASS)
    result.stdout.fnmatch_lines([f'{name} is not defined, so it is not tested' for name in
                                 ('MyDilatedConv2d', 'CNN', 'UNet', 'DilatedUNet')])
    assert result.ret == 0


def test_an_error_is_told_with_its_line_in_the_file(check):
    result = check('import torch\nclass MyConv2d(torch.nn.Module):\n    def __init__(self, *settings):\n'
                   '        super().__init__(settings)\n')
    result.stdout.fnmatch_lines(['line 4: TypeError: *'])
    assert result.ret == 1


@pytest.mark.parametrize('text, line', [
    (None, 'there is no .py file *mine.py'),
    ('x = 1\nx / 0', 'mine.py cannot be imported: line 2: ZeroDivisionError: division by zero'),
    ("print 'hello'", 'mine.py cannot be imported: SyntaxError: Missing parentheses *(mine.py, line 1)'),
    ('import sys\nsys.exit(2)', 'mine.py cannot be imported: line 2: SystemExit: 2'),
    ('x = 1', 'mine.py defines none of MyConv2d, *')])
def test_file_that_cannot_be_tested_ends_in_one_line(check, text, line):
    result = check(text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said, = filter(None, result.errlines)
    result.stderr.fnmatch_lines(['ERROR: --solution: ' + line])


def test_file_finds_the_load_data_of_its_own_folder(check, pytester):
    (pytester.path / 'load_data.py').write_text('def load_cifar10(): pass\nOF_MY_OWN = 1')
    assert check(ONE_CLASS + 'assert OF_MY_OWN').ret == 0
    assert not hasattr(load_data, 'OF_MY_OWN')
