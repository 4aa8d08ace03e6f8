"""--gpu on a pretend accelerator: no devices are mixed, the results are the CPU's, and nothing waits."""

import importlib
import io
import re
import shlex
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.backend_registration
from PIL import Image

import colourization
import load_data
from colour_regression import RegressionCNN, regression
from colourization import (CNN, AverageOfWeights, DUNet, Settings, UNet, add_prior, choose_device,
                           classification)
from load_data import HORSE, MOVES, load_sample

if not hasattr(torch.utils.backend_registration, '_DummyBackendModule'):
    pytest.skip('this torch is too old to be given an accelerator', allow_module_level=True)
from pretend import NAME, accelerator  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def no_real_one():
    if torch.accelerator.is_available():
        pytest.skip('this machine has a GPU, which the pretend one would hide')


@pytest.fixture(autouse=True)
def like_cuda(monkeypatch):
    """The pretend accelerator is treated as CUDA is; `test_other_…` shows how others are."""
    monkeypatch.setattr(load_data, 'ASYNCHRONOUS', (NAME,))
    monkeypatch.setattr(colourization, 'takes_channels_last', lambda device: True)


@pytest.fixture(scope='module')
def sample():
    """Forty horses, twenty others and, for validation, thirty horses."""
    (xs, ys), (valid_xs, valid_ys) = load_sample()
    ys = np.where(np.arange(60)[:, None] % 3, HORSE, 3).astype(np.uint8)
    return (xs[:60], ys), (valid_xs[:30], valid_ys[:30])


@pytest.fixture
def call(tmp_path, monkeypatch, sample):
    """Run a script on a few pictures; returns all that it says, writes and draws.

    Its files are in `folder`, which keeps those of earlier runs. With `stop_after` so many steps of training
    it is interrupted.
    """
    def call(command, folder='.', stop_after=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        script, *flags = shlex.split(command)
        gpu, drawn, steps, out = '--gpu' in flags, [], [], io.StringIO()
        real = AverageOfWeights.update

        def update(average):
            real(average)
            steps.append(average)
            if len(steps) == stop_after:
                raise KeyboardInterrupt

        module = importlib.import_module(script)
        with monkeypatch.context() as patch, accelerator() if gpu else nullcontext() as pretended:
            patch.chdir(tmp_path / folder)
            patch.setattr(sys, 'argv', [f'{script}.py', *flags, '--data', 'sample'])
            patch.setattr(AverageOfWeights, 'update', update)
            patch.setattr(colourization, 'load_cifar10', lambda where: sample)
            patch.setattr(colourization, 'time', SimpleNamespace(time=lambda: 0))
            patch.setattr(colourization, 'figure_file', lambda *_, **__: nullcontext())
            patch.setattr(colourization, 'draw_curves', lambda *_: None)
            patch.setattr(colourization, 'draw_pictures',
                          lambda panels, path, title: drawn.append((path.name, title, panels)))
            with redirect_stdout(out), redirect_stderr(out):
                try:
                    module.main()
                except (SystemExit, KeyboardInterrupt) as end:
                    print('Ended with', repr(end))
        if gpu:  # which is where it was done
            assert pretended.ran[NAME, 'convolution'] and not pretended.ran['cpu', 'convolution_backward']
            assert bool(pretended.ran[NAME, '_fused_adamw_']) == bool(steps)
        files = sorted((tmp_path / folder).rglob('*.*'))
        words = [out.getvalue(), *(f'{name}: {title}' for name, title, _ in drawn),
                 *(f'{path.name}: {path.read_text("utf-8")}'
                   for path in files if path.suffix in ('.csv', '.json'))]
        pictures = [picture for *_, panels in drawn for _, picture in panels]
        pictures += [np.asarray(Image.open(path)) / 255 for path in files if path.suffix == '.png']
        weights = [torch.load(path, weights_only=True) for path in files if path.suffix == '.pkl']
        return SimpleNamespace(words='\n'.join(words), pictures=pictures, weights=weights)
    return call


def assert_alike(run, other):
    """Whether two runs differ by rounding only."""
    words, its_words = (re.split(r'(\d+\.\d+(?:e-\d+)?)', run.words) for run in (run, other))
    assert words[::2] == its_words[::2]
    assert [*map(float, words[1::2])] == pytest.approx([*map(float, its_words[1::2])], rel=5e-3, abs=1e-5)
    assert len(run.pictures) == len(other.pictures) > 0
    for picture, its_picture in zip(run.pictures, other.pictures):
        assert picture.shape == its_picture.shape and np.abs(picture - its_picture).mean() < 1e-3
    for weights, its_weights in zip(run.weights, other.weights, strict=True):
        assert all(tensor.device.type == 'cpu' for tensor in weights.values())
        torch.testing.assert_close(weights, its_weights, rtol=1e-3, atol=1e-4)


# ---- The pretend accelerator itself ----------------------------------------------------------------------


MIXED = {'a sum': lambda here, there: there + here,
         'in place': lambda here, there: there.mul_(here),
         'in place on the CPU': lambda here, there: here.mul_(there),
         'a comparison': lambda here, there: (there == here).float().mean(),
         'a concatenation': lambda here, there: torch.cat([there, here]),
         'a convolution': lambda here, there: F.conv2d(there, here),
         'an index': lambda here, there: there[torch.tensor([0])],
         'an index of the CPU': lambda here, there: here[torch.tensor([0]).to(NAME)],
         'a list': lambda here, there: torch._foreach_lerp_([there, there], [there, here], 0.5)}


@pytest.mark.parametrize('mix', MIXED.values(), ids=MIXED)
def test_pretend_accelerator_mixes_no_devices(mix):
    here = torch.ones(1, 1, 2, 2)
    with accelerator():
        there = here.to(NAME)
        with pytest.raises(RuntimeError, match='mixes devices'):
            mix(here, there)


def test_pretend_accelerator_computes():
    x, weight = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    with accelerator():
        assert torch.accelerator.is_available() and choose_device(True).type == NAME
        there, its_weight = x.to(NAME), torch.nn.Parameter(weight.to(NAME))
        result = F.conv2d(there, its_weight).relu()
        result.square().sum().backward()
        there[:, 1] *= torch.tensor(2.0)  # a number may come from the CPU
        its_weight.data = its_weight.data + torch.arange(3, device=NAME)
        with pytest.raises(AttributeError):
            its_weight.data = weight
        assert {y.device for y in (there, result, its_weight, its_weight.grad)} == {torch.device(NAME, 0)}
        results = [y.detach().cpu() for y in (there, result, its_weight, its_weight.grad)]
    expected = F.conv2d(x, weight.requires_grad_()).relu()
    expected.square().sum().backward()
    x[:, 1] *= 2
    weights = weight.detach() + torch.arange(3)
    torch.testing.assert_close(results, [x, expected.detach(), weights, weight.grad])


WAITS = {'to': (1, lambda x: torch.ones(3).to(NAME)),
         'to, later': (0, lambda x: torch.ones(3).to(NAME, non_blocking=True)),
         'copy': (1, lambda x: x.copy_(torch.ones(3))),
         'copy, later': (0, lambda x: x.copy_(torch.ones(3), non_blocking=True)),
         'copy back': (1, lambda x: torch.ones(3).copy_(x, non_blocking=True)),
         'cpu': (1, lambda x: x.cpu()),
         'item': (1, lambda x: x[0].item()),
         'bool': (1, lambda x: bool(x.sum() > 0)),
         'nonzero': (1, lambda x: x.nonzero()),
         'mask': (1, lambda x: x[x > 0]),
         'arithmetic': (0, lambda x: (x * 2 + x.clone().to(torch.float64)).softmax(0)[x.long()]),
         'on the CPU': (0, lambda x: torch.ones(3).to(torch.int8).sum().item())}


@pytest.mark.parametrize('count, work', WAITS.values(), ids=WAITS)
def test_pretend_accelerator_counts_how_often_the_cpu_waits(count, work):
    with accelerator() as pretended:
        x = torch.ones(3, device=NAME)
        assert pretended.waited == 0
        work(x)
    assert pretended.waited == count


def test_pretend_accelerator_is_gone_afterwards(capsys):
    with accelerator():
        x = torch.ones(3, device=NAME)
        file = io.BytesIO()
        torch.save(x, file)
    assert not torch.accelerator.is_available()
    assert choose_device(True).type == 'cpu' and 'no GPU' in capsys.readouterr().err
    file.seek(0)
    with pytest.raises(NotImplementedError):  # so no test takes a file for one of the CPU
        torch.load(file, weights_only=True)
    with pytest.raises(RuntimeError, match='gone'):
        x + x


# ---- The scripts on it -----------------------------------------------------------------------------------


FLAGS = (r' (?:-b|--(?:augment|category|hold_out|image_size|plot|prior|schedule|temperature|weight_decay))'
         r'(?: [^-]\S*)*')


def assert_each_flag_matters(flags, command, run, call):
    """Whether the CPU's results are others without each of these flags: both devices could ignore one."""
    for flag in re.findall(FLAGS, flags):
        other = call(command.replace(flag, ''), f'without{flag}')
        assert numbers(other) != numbers(run), f'{flag} is ignored'


def numbers(run):
    tensors = [tensor for weights in run.weights for tensor in weights.values()]
    return [np.asarray(array).tobytes() for array in (*run.pictures, *tensors)]


TRAINED = [
    'colourization -m CNN', 'colourization -m UNet --plot',
    'colourization -m DUNet --schedule onecycle --weight_decay 0.1 --hold_out 5',
    f'colourization -m UNet --prior --augment {" ".join(MOVES)} classes --plot --temperature 0.38',
    'colourization -m CNN --prior 20 --category all -b 7',
    f'colour_regression --train --plot --schedule onecycle --augment {" ".join(MOVES)}']
SMALL = '-e 2 -f 2 -b 10 -l 0.01 --float32 --checkpoint w.pkl'


@pytest.mark.parametrize('command', TRAINED)
def test_training_on_an_accelerator_gives_what_it_gives_on_the_cpu(command, call):
    script, flags = command.split(maxsplit=1)
    command = f'{script} {SMALL} {flags}'
    on_gpu, on_cpu = call(f'{command} --gpu', 'gpu'), call(command, 'cpu')
    assert 'Epoch [2/2], Val Loss' in on_gpu.words and len(on_gpu.weights) == 1
    assert_alike(on_gpu, on_cpu)
    assert_each_flag_matters(flags, command, on_cpu, call)


@pytest.mark.parametrize('steps, resumed_with', [
    (5, '--gpu'), (6, ''),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(5, ''), (6, '--gpu')])])
def test_training_is_resumed_on_an_accelerator_and_from_one(steps, resumed_with, call):
    command = f'colourization {SMALL} -m UNet --prior 20 --augment zoom flip_lr --schedule onecycle'
    whole = call(f'{command} --gpu', 'whole')
    stopped = call(f'{command} --gpu', 'parts', stop_after=steps)
    assert 'Ended with KeyboardInterrupt' in stopped.words and len(stopped.weights) == 1
    resumed = call(f'{command} --resume {resumed_with}', 'parts')
    resumed.words, n = re.subn(r'^Epoch \[2/2\], Loss', lambda line: ''.join(
        re.findall(r'^Epoch \[1/2\].*\n', whole.words, re.MULTILINE)) + line[0], resumed.words)
    assert n == 1
    assert_alike(resumed, whole)
    if resumed_with:
        assert all(tensor.equal(resumed.weights[0][name]) for name, tensor in whole.weights[0].items())


@pytest.mark.parametrize('command', [
    'colourization --valid -m CNN --checkpoint weights/cnn_k3_f32.pkl',
    'colourization --valid -m DUNet --checkpoint weights/dunet_k3_f32.pkl --temperature 0.38',
    'colourization --valid -m UNet --checkpoint weights/unet_prior_k3_f32.pkl --hold_out 20',
    'colour_regression', 'colourization --image grey.png rgba.png', 'colourization --image grey.png -m CNN '
    '--checkpoint weights/cnn_k3_f32.pkl --temperature 0 --image_size 16'])
def test_evaluation_on_an_accelerator_gives_what_it_gives_on_the_cpu(command, call, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 4), dtype=np.uint8)
    for name, picture in ('grey.png', pixels[..., 0]), ('rgba.png', pixels):
        Image.fromarray(picture).save(tmp_path / name)
    command = re.sub(r'\w+\.png', lambda name: str(tmp_path / name[0]), command)
    on_gpu, on_cpu = call(f'{command} --gpu', 'gpu'), call(command, 'cpu')
    assert 'Wrote' in on_gpu.words or 'Val Loss' in on_gpu.words
    assert_alike(on_gpu, on_cpu)
    assert_each_flag_matters(command, command, on_cpu, call)


@pytest.mark.parametrize('make, flags', [
    (UNet, {'augment': MOVES}), (DUNet, {'schedule': 'onecycle'}),
    *(pytest.param(make, {}, marks=pytest.mark.slow) for make in (CNN, RegressionCNN))])
def test_an_epoch_waits_as_often_with_more_steps(make, flags, tmp_path, monkeypatch):
    """Each wait of the CPU leaves the accelerator idle: an epoch may have some, a step none."""
    monkeypatch.setattr(colourization, 'figure_file', lambda *_, **__: nullcontext())
    monkeypatch.setattr(colourization, 'draw_curves', lambda *_: None)
    waited = []
    for steps in 5, 9:
        grey, target = torch.rand(4 * steps, 1, 8, 8), torch.randint(5, (4 * steps, 1, 8, 8))
        model, objective = make(3, 2, *[5] * (make is not RegressionCNN)), classification
        if make is RegressionCNN:
            target, objective = grey.repeat(1, 3, 1, 1), regression
        else:
            add_prior(model, torch.zeros(20, 5))
        with accelerator() as pretended:
            data = grey.to(NAME), target.to(NAME)
            settings = Settings('network', 'noise', batch_size=4, epochs=1, **flags)
            colourization.train(model.to(NAME), objective, data, data, settings, tmp_path / 'w.pkl', tmp_path)
        assert pretended.ran[NAME, '_fused_adamw_'] == steps
        waited.append(pretended.waited)
    assert waited[0] == waited[1] > 0


def test_other_accelerators_get_neither_channels_last_nor_asynchronous_copies(monkeypatch):
    """On Apple's they gave wrong gradients and broken indices: pytorch issues 181411 and 139550."""
    monkeypatch.undo()
    for device, expected in (('cpu', True), ('cuda', True), ('mps', False), ('xpu', False)):
        assert colourization.takes_channels_last(torch.device(device)) == expected
    model, waited = UNet(3, 2, 5), []
    with accelerator() as pretended:
        model.to(NAME)
        data = torch.rand(8, 1, 8, 8).to(NAME), torch.rand(8, 3, 8, 8).to(NAME)
        joined = []
        model.finalconv.register_forward_pre_hook(lambda layer, inputs: joined.append(inputs[0]))
        model(data[0])
        for batch_size in (4, 2):
            before = pretended.waited
            list(load_data.batches(data, batch_size, torch.Generator(), ['flip_lr']))
            waited.append(pretended.waited - before)
    assert joined[0].is_contiguous()
    assert waited == [1 + 2 * 2, 1 + 2 * 4]  # for the order, and for the rows and columns of each batch
