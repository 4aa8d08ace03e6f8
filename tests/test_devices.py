"""Threads, processors and GPUs: as many as are free, in the format that they like; with a pretend GPU the
results are the CPU's, no devices are mixed, and nothing waits.
"""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils import backend_registration

import colourization
import load_data
from colourization import (DUNet, MyConv2d, Settings, UNet, add_prior, busy_seconds, choose_device,
                           choose_threads, classification, multiplies_bfloat16)
from conftest import ROOT, panels, run_in, training
from load_data import HORSE, MOVES, load_sample
from pretend import NAME, accelerator

# ---- Threads ----

STAT = """cpu  600 60 600 9000 60 6 6 6 0 0
cpu0 100 10 200 4000 30 1 2 3 7 0
cpu1 500 50 400 5000 30 5 4 3 0 0
cpu10 9000 0 0 0 0 0 0 0 0 0
intr 1
"""


@pytest.mark.parametrize('cores, ticks', [({0}, 316), ({1}, 962), ({0, 1}, 1278)])
def test_busy_seconds_are_those_of_our_cores_without_our_own(cores, ticks, tmp_path, monkeypatch):
    """User, nice, system, interrupts and what a hypervisor took; not idle or waiting for a disk.

    Our own are also those of our children.
    """
    (tmp_path / 'stat').write_text(STAT)
    monkeypatch.setattr(colourization, 'STAT', tmp_path / 'stat')
    monkeypatch.setattr(colourization, 'CORES', cores)
    monkeypatch.setattr(os, 'times', lambda: (0.25, 0.5, 0.75, 1.0, 99.0))
    assert busy_seconds() == pytest.approx(ticks / os.sysconf('SC_CLK_TCK') - 2.5)
    monkeypatch.setattr(colourization, 'STAT', tmp_path / 'none')
    assert busy_seconds() is None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend a machine of so many cores, which others have kept so busy; returns the numbers of threads set.

    It tells by /proc/stat, or by its load alone. A quota of None is a folder.
    """
    def pretend(cores=8, busy=0., by_stat=False, quota='max 100000', omp=None, threads=None):
        chosen, file = [threads or cores], tmp_path / 'cpu.max'
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
        if omp is not None:
            monkeypatch.setenv('OMP_NUM_THREADS', omp)
        file.mkdir() if quota is None else file.write_text(quota, 'latin1')
        monkeypatch.setattr(colourization, 'QUOTA', file)
        monkeypatch.setattr(colourization, 'START', (time.monotonic() - 1000, 5.0 if by_stat else None))
        monkeypatch.setattr(colourization, 'busy_seconds', lambda: 5 + 1000 * busy)
        monkeypatch.setattr(colourization, 'CORES', set(range(cores)))
        monkeypatch.setattr(os, 'cpu_count', lambda: cores)
        monkeypatch.setattr(os, 'getloadavg', lambda: (busy, 0, 0), raising=False)
        monkeypatch.setattr(torch, 'get_num_threads', lambda: chosen[-1])
        monkeypatch.setattr(torch, 'set_num_threads', chosen.append)
        return chosen
    return pretend


MACHINES = [
    *(({'cores': cores, 'busy': busy, 'by_stat': by_stat}, expected) for by_stat in (True, False)
      for cores, busy, expected in [(2, 0, 2), (2, 0.4, 2), (2, 0.9, 1), (2, 2.1, 1), (2, 7, 1), (1, 1, 1),
                                    (8, 3, 5), (64, 0.2, 64)]),
    *(({'quota': quota}, expected) for quota, expected in [  # of a container
        ('150000 100000\n', 2), ('100000 100000', 1), ('50000 100000', 1), ('6400000 100000', 8)]),
    *(({'quota': quota, 'busy': 3}, 5) for quota in [  # more than is free, or which cannot be understood
        '700000 100000', '', 'max', 'max 100000', '100000 100000 1', '100000 0', '-1 100000', '100000 -1',
        'nan 1', '\xff\xfe', None]),
    *(({'omp': value, 'busy': 3}, expected) for value, expected in [
        ('', 5), ('abc', 5), ('0', 5), ('-2', 5), ('1.5', 5), (' 8 ', 8), ('8', 8)]),
    ({'threads': 4}, 4), ({'threads': 16}, 8)]  # torch itself has fewer than there are cores, or more


@pytest.mark.parametrize('settings, expected', MACHINES, ids=str)
def test_threads_are_as_many_as_the_free_cores_unless_somebody_says_otherwise(settings, expected, machine,
                                                                             capsys):
    chosen = machine(**settings)
    first = chosen[0]
    choose_threads()
    assert chosen[-1] == expected
    note = capsys.readouterr().err
    assert note == '' if expected == first else f'{expected} of {first} threads' in note


def test_cores_are_those_that_the_system_leaves_us(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {3}, raising=False)
    assert runpy.run_path(str(ROOT / 'colourization.py'), run_name='other')['CORES'] == {3}


def test_cores_that_are_not_ours_are_not_free(machine, monkeypatch):
    chosen = machine(by_stat=True)
    monkeypatch.setattr(colourization, 'CORES', {3, 5})
    choose_threads()
    assert chosen[-1] == 2


def test_cores_are_counted_before_torch_binds_us_to_one(monkeypatch):
    code = ('import os, time\ncores = len(os.sched_getaffinity(0))\nimport colourization, torch\n'
            'colourization.START = time.monotonic() - 1000, colourization.busy_seconds()\n'
            'colourization.choose_threads()\n'
            'print(cores, torch.get_num_threads(), len(os.sched_getaffinity(0)))')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setenv('OMP_PROC_BIND', 'true')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    cores, threads, bound = map(int, done.stdout.split())
    if cores == bound:
        pytest.skip('there is one core, or the system does not bind threads')
    assert bound == 1 and threads == cores and done.stderr == ''


@pytest.mark.parametrize('before, omp, expected', [(1, None, 1), (64, None, 3), (1, '3', 3)])
def test_resumed_run_has_as_many_threads_as_before_if_there_are_so_many(before, omp, expected, machine,
                                                                       tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: before)
    training(tmp_path, stop_after=4)
    chosen = machine(cores=3, omp=omp)
    training(tmp_path, resume=True)
    assert chosen[-1] == expected


@pytest.mark.parametrize('flags, chosen', [('', [2, 1]), ('--resume', [2])])
def test_resumed_run_chooses_no_threads(flags, chosen, run_script, tmp_path, machine):
    """So that it can take as many as before, and come to the same bits."""
    if flags:
        (tmp_path / 'w.pkl.resume').write_bytes(b'broken')
    threads = machine(cores=2, busy=1)
    run_script('colourization.py', '-m', 'CNN', '-f', 1, '-e', 1, '--data', 'sample', '--checkpoint', 'w.pkl',
               *flags.split())
    assert threads == chosen


@pytest.mark.parametrize('script, environment, expected', [
    ('colour_regression', {}, '20000'), ('activations', {}, '20000'), ('colourization', {}, '20000'),
    ('colourization', {'GOMP_SPINCOUNT': '5'}, '5'),
    ('colourization', {'OMP_WAIT_POLICY': 'active'}, 'None')])
def test_threads_wait_as_the_environment_says_or_shortly(script, environment, expected, monkeypatch):
    """It has to be said before torch is imported."""
    code = ('import builtins, os, sys\nreal = builtins.__import__\n'
            'def imported(name, *more):\n'
            '    if name == "torch": sys.exit(str(os.environ.get("GOMP_SPINCOUNT")))\n'
            '    return real(name, *more)\n'
            f'builtins.__import__ = imported\nimport {script}')
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=os.environ | environment,
                          capture_output=True, text=True)
    assert done.stderr.strip() == expected


# ---- What a processor multiplies, and in which order ----


@pytest.mark.parametrize('features, float32, expected', [
    ({'avx512_bf16': True}, False, torch.bfloat16), ({'amx_bf16': True}, False, torch.bfloat16),
    ({'avx512_bf16': True, 'amx_bf16': True}, True, torch.float32),
    ({'avx512_f': True}, False, torch.float32), (None, False, torch.float32)])
def test_network_multiplies_in_bfloat16_where_the_hardware_does(features, float32, expected, tmp_path,
                                                                monkeypatch):
    """Only in training; the loss, weights and validation are in float32. An old torch does not tell."""
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: features, raising=False)
    if features is None:
        monkeypatch.delattr(torch.cpu, 'get_capabilities')
    products, real = {True: set(), False: set()}, F.conv2d

    def convolve(x, *args, **kwargs):
        y = real(x, *args, **kwargs)
        products[torch.is_grad_enabled()].add(y.dtype)
        return y

    losses, real_loss = set(), F.cross_entropy
    monkeypatch.setattr(F, 'conv2d', convolve)
    monkeypatch.setattr(F, 'cross_entropy', lambda s, c: losses.add(s.dtype) or real_loss(s, c))
    saved = training(tmp_path, float32=float32)
    assert products == {True: {expected}, False: {torch.float32}} and losses == {torch.float32}
    assert all(t.dtype == torch.float32 for t in saved.values() if t.is_floating_point())
    monkeypatch.undo()
    plain = training(tmp_path)
    assert all(torch.allclose(saved[name], plain[name], atol=0.02) for name in saved)


@pytest.mark.parametrize('device, emulated, itself, expected', [
    ('cuda', True, True, True), ('cuda', True, False, False), ('mps', True, True, False)])
def test_card_that_only_emulates_bfloat16_does_not_multiply_it(device, emulated, itself, expected,
                                                               monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True:
                        emulated if including_emulation else itself)
    assert multiplies_bfloat16(torch.device(device)) == expected


@pytest.mark.parametrize('bfloat16', [False, True])
def test_every_convolution_of_the_unet_gets_the_fast_memory_format(bfloat16):
    model = UNet(3, 4, 5).to(memory_format=torch.channels_last)
    formats = []
    for layer in model.modules():
        if isinstance(layer, MyConv2d):
            layer.register_forward_pre_hook(lambda layer, inputs: formats.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)))
    with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
        model(torch.rand(2, 1, 8, 8))
    assert formats == [True] * 6


# ---- A GPU, or none ----


@pytest.fixture
def like_cuda(monkeypatch):
    """The pretend accelerator is treated as CUDA is; `test_other_…` shows how others are."""
    if not hasattr(backend_registration, '_DummyBackendModule'):
        pytest.skip('this torch is too old to be given an accelerator')
    if torch.accelerator.is_available():
        pytest.skip('this machine has a GPU, which the pretend one would hide')
    monkeypatch.setattr(load_data, 'ASYNCHRONOUS', (NAME,))
    monkeypatch.setattr(colourization, 'takes_channels_last', lambda device: True)


on_pretend_gpu = pytest.mark.usefixtures('like_cuda')
MIXED = {'a sum': lambda here, there: there + here,
         'in place on the CPU': lambda here, there: here.mul_(there),
         'an index': lambda here, there: there[torch.tensor([0])],
         'an index of the CPU': lambda here, there: here[torch.tensor([0]).to(NAME)],
         'a list': lambda here, there: torch._foreach_lerp_([there, there], [there, here], 0.5)}


@on_pretend_gpu
@pytest.mark.parametrize('mix', MIXED.values(), ids=MIXED)
def test_pretend_accelerator_mixes_no_devices(mix):
    here = torch.ones(1, 1, 2, 2)
    with accelerator():
        there = here.to(NAME)
        with pytest.raises(RuntimeError, match='mixes devices'):
            mix(here, there)


@on_pretend_gpu
def test_pretend_accelerator_computes():
    x, weight = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
    with accelerator():
        assert [choose_device(gpu).type for gpu in (True, False)] == [NAME, 'cpu']
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
         'item': (1, lambda x: x[0].item()),
         'mask': (1, lambda x: x[x > 0]),
         'arithmetic': (0, lambda x: (x * 2 + x.clone().to(torch.float64)).softmax(0)[x.long()]),
         'on the CPU': (0, lambda x: torch.ones(3).to(torch.int8).sum().item())}


@on_pretend_gpu
@pytest.mark.parametrize('count, work', WAITS.values(), ids=WAITS)
def test_pretend_accelerator_counts_how_often_the_cpu_waits(count, work):
    with accelerator() as pretended:
        x = torch.ones(3, device=NAME)
        assert pretended.waited == 0
        work(x)
    assert pretended.waited == count


@on_pretend_gpu
def test_pretend_accelerator_is_gone_afterwards(capsys):
    with accelerator():
        x = torch.ones(3, device=NAME)
        file = io.BytesIO()
        torch.save(x, file)
    assert not torch.accelerator.is_available()
    assert choose_device(True).type == 'cpu'
    assert re.fullmatch('warning: no GPU .* CPU .*\n', capsys.readouterr().err)
    file.seek(0)
    with pytest.raises(NotImplementedError):  # so no test takes a file for one of the CPU
        torch.load(file, weights_only=True)
    with pytest.raises(RuntimeError, match='gone'):
        x + x


# ---- The scripts on a pretend GPU ----


@pytest.fixture(scope='module')
def few():
    """Forty horses, twenty others and, for validation, thirty horses."""
    (xs, ys), (valid_xs, valid_ys) = load_sample()
    ys = np.where(np.arange(60)[:, None] % 3, HORSE, 3).astype(np.uint8)
    return (xs[:60], ys), (valid_xs[:30], valid_ys[:30])


@pytest.fixture
def call(tmp_path, monkeypatch, few, like_cuda):
    """Run a script on a few pictures, with or without the pretend GPU, in a folder of this name.

    Returns its status, its weights, all words that it says and writes, and all pictures that it draws.
    """
    def call(command, folder='.', stop_after=None):
        folder = tmp_path / folder
        folder.mkdir(exist_ok=True)
        script, *flags = shlex.split(command)
        gpu = '--gpu' in flags
        with monkeypatch.context() as patch, accelerator() if gpu else nullcontext() as pretended:
            patch.setattr(colourization, 'load_cifar10', lambda where: few)
            patch.setattr(colourization, 'time', SimpleNamespace(time=lambda: 0))
            done = run_in(folder, f'{script}.py', *flags, '--data', 'sample', stop_after=stop_after)
        if gpu:  # which is where it was done
            assert pretended.ran[NAME, 'convolution'] and not pretended.ran['cpu', 'convolution_backward']
            assert bool(pretended.ran[NAME, '_fused_adamw_']) == ('-e' in flags)
        files, figures = sorted(folder.rglob('*.*')), sorted(done.figures.items())
        tables = [path for path in files if path.suffix in ('.csv', '.json')]
        words = [done.output, done.errors, *(f'{name}: {figure.get_suptitle()}' for name, figure in figures),
                 *(f'{path.name}: {path.read_text("utf-8")}' for path in tables)]
        pictures = [picture for name, figure in figures if 'curve' not in name
                    for picture in panels(figure).values()]
        pictures += [np.asarray(Image.open(path)) / 255 for path in files if path.match('*_colour.png')]
        weights = [torch.load(path, weights_only=True) for path in files if path.suffix == '.pkl']
        return SimpleNamespace(status=done.status, words='\n'.join(words), pictures=pictures, weights=weights)
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
    on_gpu, on_cpu = (call(f'{script} {SMALL} {flags} {gpu}', f'on{gpu}') for gpu in ('--gpu', ''))
    assert 'Epoch [2/2], Val Loss' in on_gpu.words and len(on_gpu.weights) == 1
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize('steps, resumed_with', [(5, '--gpu'), (6, '')])
def test_training_is_resumed_on_an_accelerator_and_from_one(steps, resumed_with, call):
    command = f'colourization {SMALL} -m UNet --prior 20 --augment zoom flip_lr --schedule onecycle'
    whole = call(f'{command} --gpu', 'whole')
    stopped = call(f'{command} --gpu', 'parts', stop_after=steps)
    assert stopped.status == 130 and len(stopped.weights) == 1
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
    'colour_regression', 'colourization --image ../grey.png ../rgba.png', 'colourization --image ../grey.png '
    '-m CNN --checkpoint weights/cnn_k3_f32.pkl --temperature 0 --image_size 16'])
def test_evaluation_on_an_accelerator_gives_what_it_gives_on_the_cpu(command, call, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 4), dtype=np.uint8)
    for name, picture in ('grey.png', pixels[..., 0]), ('rgba.png', pixels):
        Image.fromarray(picture).save(tmp_path / name)
    on_gpu, on_cpu = (call(f'{command} {gpu}', f'on{gpu}') for gpu in ('--gpu', ''))
    assert 'Wrote' in on_gpu.words or 'Val Loss' in on_gpu.words
    assert_alike(on_gpu, on_cpu)


@on_pretend_gpu
@pytest.mark.parametrize('make, flags', [(UNet, {'augment': MOVES}), (DUNet, {'schedule': 'onecycle'})])
def test_an_epoch_waits_as_often_with_more_steps(make, flags, tmp_path, monkeypatch):
    """Each wait of the CPU leaves the accelerator idle: an epoch may have some, a step none."""
    monkeypatch.setattr(colourization, 'figure_file', lambda *_, **__: nullcontext())
    monkeypatch.setattr(colourization, 'draw_curves', lambda *_: None)
    waited = []
    for steps in 5, 9:
        data = torch.rand(4 * steps, 1, 8, 8), torch.randint(5, (4 * steps, 1, 8, 8))
        model = make(3, 2, 5)
        add_prior(model, torch.zeros(20, 5))
        with accelerator() as pretended:
            data = [tensor.to(NAME) for tensor in data]
            settings = Settings('network', 'noise', batch_size=4, epochs=1, **flags)
            colourization.train(model.to(NAME), classification, data, data, settings, tmp_path / 'w.pkl',
                                tmp_path)
        assert pretended.ran[NAME, '_fused_adamw_'] == steps
        waited.append(pretended.waited)
    assert waited[0] == waited[1] > 0


@on_pretend_gpu
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
