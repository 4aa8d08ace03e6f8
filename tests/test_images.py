"""--image: a user's own pictures of every kind, coloured with their own brightness."""

import io
import os
import re
import struct
import textwrap
import unicodedata
import warnings
import zlib
from itertools import product

import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, PngImagePlugin, features
from scipy.ndimage import uniform_filter

import colourization
import load_data
from colourization import CNN, add_prior, colourize, load_model, scores_to_rgb
from conftest import ROOT, near, peak_memory, unix_only
from files import bmp, packed, png, pnm, tiff
from load_data import InputError, read_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
RGB[:, :30] = RGB[:, :30] // 40 * 20 + 50  # calmer, and far from black and white
GREY = RGB.mean(axis=2)
ALPHA = RNG.integers(0, 256, (40, 60), np.uint8)
COLOURS = RNG.random((5, 3), dtype=np.float32)


def kinds():
    """Files by name: the picture, how to save it, the grey that it means (0 to 255), its alpha."""
    rgb, luma = Image.fromarray(RGB), Image.fromarray(GREY.astype(np.uint8))
    palette = rgb.quantize(16)
    through = luma.quantize(8)
    of_palette = np.asarray(through.convert('RGB')).mean(axis=2)
    deep = (GREY * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    return {
        'rgb.png': (rgb, {}, GREY, None),
        'grey.png': (luma, {}, GREY.astype(np.uint8), None),
        'rgba.png': (Image.fromarray(np.dstack([RGB, ALPHA])), {}, GREY, ALPHA),
        'la.png': (Image.merge('LA', [luma, Image.fromarray(ALPHA)]), {}, GREY.astype(np.uint8), ALPHA),
        'palette.gif': (palette, {}, np.asarray(palette.convert('RGB')).mean(axis=2), None),
        'transparent.png': (through, {'transparency': 3}, of_palette,
                            np.where(np.asarray(through) == 3, 0, 255)),
        'deep.png': (Image.fromarray(deep), {}, deep / 257, None),
        'bits.png': (luma.convert('1'), {}, np.asarray(luma.convert('1')) * 255, None),
        'print.tif': (rgb.convert('CMYK'), {}, np.asarray(rgb.convert('CMYK').convert('RGB')).mean(axis=2),
                      None),
        'turned.png': (rgb, {'exif': exif}, np.rot90(GREY, -1), None)}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return CNN(3, 4, 5).eval()


def test_pictures_of_every_kind_keep_size_brightness_and_alpha(run_script, tmp_path):
    files = kinds()
    for name, (picture, options, _, _) in files.items():
        picture.save(tmp_path / name, **options)
    done = run_script('colourization.py', '--image', *files)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        f'outputs/{name.split(".")[0]}_colour.png' for name in files]
    for name, (_, _, grey, alpha) in files.items():
        result = np.asarray(Image.open(tmp_path / f'outputs/{name.split(".")[0]}_colour.png'))
        difference = result[..., :3].mean(axis=2) - grey
        assert np.abs(difference).max() <= 1 and abs(difference.mean()) < 0.1, name  # rounded, not cut off
        if alpha is None:
            assert result.shape[2] == 3
        else:
            assert result.shape[2] == 4 and np.array_equal(result[..., 3], alpha)
        if name != 'bits.png':  # black and white have no room for colour
            assert np.ptp(result[..., :3], axis=2).max() > 5


def test_broken_files_do_not_stop_the_others(run_script, tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'good.png')
    whole = (tmp_path / 'good.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'folder').mkdir()
    Image.new('1', (13_400, 13_400)).save(tmp_path / 'bomb.png')
    Image.fromarray(RGB[..., 0] / np.float32(255)).save(tmp_path / 'fractions.tif')
    broken = ['cut.png', 'empty.jpg', 'missing.png', 'text.jpg', 'folder', 'bomb.png', 'fractions.tif']
    done = run_script('colourization.py', '--image', 'good.png', *broken)
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/good_colour.png\n'
    lines = done.stderr.splitlines()
    assert [line.split(':')[:2] for line in lines] == [['error', f' {name}'] for name in broken]
    assert [p.name for p in (tmp_path / 'outputs').iterdir()] == ['good_colour.png']


def test_pictures_of_the_same_name_do_not_overwrite_each_other(run_script, tmp_path):
    for folder, value in (('a', 50), ('b', 200)):
        (tmp_path / folder).mkdir()
        Image.new('L', (8, 8), value).save(tmp_path / folder / 'x.png')
    done = run_script('colourization.py', '--image', 'a/x.png', 'b/x.png', '-m', 'CNN',
                      '--checkpoint', 'weights/cnn_k3_f32.pkl')
    assert done.returncode == 0, done.stderr
    for name, value in (('x', 50), ('x_2', 200)):
        assert np.asarray(Image.open(tmp_path / f'outputs/{name}_colour.png')).mean() == pytest.approx(
            value, abs=1)


@pytest.mark.parametrize('shape', [(1, 1), (1, 700), (5, 3), (33, 47), (300, 200)])
@pytest.mark.parametrize('size', [4, 64])
def test_any_size_keeps_its_brightness(shape, size, model):
    grey = np.random.default_rng(1).random(shape, dtype=np.float32)
    rgb = colourize(grey, model, COLOURS, size=size)
    assert rgb.shape == (*shape, 3) and rgb.dtype == np.float32
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert near(rgb.mean(axis=2), grey, 1e-5)


@pytest.mark.parametrize('temperature, saturation', [(0, 1), (0.38, 1), (1, 1), (1, 1.5), (1, 0)])
def test_small_picture_is_the_networks_own_chroma_along_edges_with_the_grey(temperature, saturation):
    model = CNN(3, 4, 5).eval()
    add_prior(model, torch.randn(766, 5))  # so that its scores depend on every grey level
    grey = np.random.default_rng(2).uniform(0.45, 0.55, (32, 32)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(grey)[None, None] * 255 / 256)
    pale = COLOURS * 0.4  # so that no colour leaves [0, 1]
    answer = scores_to_rgb(scores, pale, temperature)[0].astype(float)
    slope, offset = guided(grey.astype(float), answer - answer.mean(axis=0))
    expected = (saturation * (slope * grey + offset) + grey).transpose(1, 2, 0)
    rgb = colourize(grey, model, pale, temperature, saturation=saturation)
    assert near(rgb, expected, 1e-4)


def test_lines_of_the_readme_colour_a_photo(tmp_path, monkeypatch):
    readme = (ROOT / 'README.md').read_text('utf-8')
    lines = re.search(r'^ +from matplotlib.*\n(?: +.*\n)+', readme, re.MULTILINE)[0]
    assert lines.count('\n') == 4
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save('photo.jpg')
    exec(textwrap.dedent(lines), {})
    coloured = np.asarray(Image.open('photo_colour.png').convert('RGB')).astype(float)
    grey = np.asarray(Image.open('photo.jpg')).mean(axis=2)
    assert np.abs(coloured.mean(axis=2) - grey).max() <= 1  # imsave rounds down
    assert coloured.std(axis=2).mean() > 1


@pytest.mark.parametrize('flag, times', [('--saturation 0', 0), ('--saturation 0.7', 0.5), ('', 1)])
def test_saturation_says_how_strong_the_colours_are(flag, times, run_script, tmp_path):
    Image.fromarray(RGB[:, :30]).save(tmp_path / 'a.png')  # where nothing leaves [0, 255]
    painted = []
    for flags in ('--saturation 1.4', flag):
        assert run_script('colourization.py', '--image', 'a.png', *flags.split()).returncode == 0
        painted.append(np.asarray(Image.open(tmp_path / 'outputs/a_colour.png')).astype(float))
    full, result = (rgb - rgb.mean(axis=2, keepdims=True) for rgb in painted)
    assert np.abs(full).max() > 10 and np.abs(result - times * full).max() < 1.5  # rounded to whole numbers


def test_stripes_finer_than_what_the_network_sees_look_even_to_it(model):
    views = []
    hook = model.register_forward_hook(lambda _, inputs, answer: views.extend(inputs))
    colourize(np.tile(np.float32([0, 1]), (288, 144)), model, COLOURS, size=32)
    hook.remove()
    assert [view.shape[2:] for view in views] == [(32, 32), (16, 16), (8, 8)]
    for view in views:
        assert near(view.numpy(), 0.5 * 255 / 256, 0.03)  # more at its rim


@pytest.mark.parametrize('flags, temperature, size, saturation', [
    ('', 1, 224, 1.4), ('--temperature 0.3 --image_size 16 --saturation 2 -k 3 -f 32', 0.3, 16, 2)])
def test_flags_and_their_defaults_are_those_of_colourize(flags, temperature, size, saturation, run_script,
                                                         tmp_path):
    """Of a picture that is larger than what the network sees of it."""
    grey = np.random.default_rng(3).integers(0, 256, (30, 40), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(grey).save(tmp_path / 'a.png')
    checkpoint = ROOT / 'weights/cnn_k3_f32.pkl'
    done = run_script('colourization.py', '--image', 'a.png', '-m', 'CNN', '--checkpoint', checkpoint,
                      *flags.split(), '--outdir', 'results')
    assert done.returncode == 0 and done.stderr == ''
    model, colours = load_model(CNN, checkpoint)
    expected = colourize(grey / np.float32(255), model, colours, temperature, size, saturation)
    painted = np.asarray(Image.open(tmp_path / 'results/a_colour.png'))
    assert np.abs(painted - 255 * expected).max() < 0.51  # rounded


def test_network_sees_a_picture_a_half_and_a_quarter_of_it(model):
    seen = []
    hook = model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].shape))
    colourize(np.random.default_rng(4).random((100, 400), np.float32), model, COLOURS, size=64)
    hook.remove()
    assert seen == [(1, 1, 32, 128), (1, 1, 16, 64), (1, 1, 8, 32)]


def test_flat_areas_get_smooth_colours_from_a_small_view(model):
    """Between the pixels that the network sees there are no steps."""
    grey = np.full((256, 256), 0.5, np.float32)
    grey[64:192, 64:192] = 0.6
    seen = CNN(3, 4, 5).eval()
    add_prior(seen, 50 * torch.eye(5)[torch.arange(766) % 5])
    rgb = colourize(grey, seen, COLOURS, size=32)
    chroma = rgb - rgb.mean(axis=2, keepdims=True)
    whole, flat = np.ptp(chroma, axis=(0, 1)).max(), np.diff(grey, axis=0) == 0
    assert whole > 0.02 and np.abs(np.diff(chroma, axis=0))[flat].max() < whole / 3


def test_chroma_has_the_edges_of_the_large_picture():
    """A step in a picture that the network sees at an eighth of the size."""
    class TwoColours(CNN):
        def forward(self, grey):
            return torch.cat([grey - 0.5, 0.5 - grey], dim=1) * 1000
    grey = np.full((256, 256), 0.35, np.float32)
    grey[:, 131:] = 0.65  # in the middle of what becomes one pixel
    rgb = colourize(grey, TwoColours(3, 1, 2), np.float32([[0.6, 0.4, 0.5], [0.4, 0.6, 0.5]]), 0, 32, 1)
    red = (rgb - rgb.mean(axis=2, keepdims=True))[128, :, 0]
    assert red[:110] == pytest.approx(-0.1, abs=0.01) and red[150:] == pytest.approx(0.1, abs=0.01)
    assert red[131] - red[130] > 0.15


# ---------------------------------------------------------------------------
# What files say of their pixels
# ---------------------------------------------------------------------------

def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def read(folder, content):
    path = folder / ('x.tif' if content[:4] in (b'II*\0', b'MM\0*') else 'x')
    path.write_bytes(content)
    return read_picture(path)


DEEP = np.array([[0, 1, 1000, 2048], [2049, 3000, 4094, 4095]], np.uint16)  # of 12 bits
WIDE = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def stored():
    """Pictures by how they store their pixels, and the grey (0 to 1) and alpha that they mean.

    Without compression, and with: then libtiff reads them, in the order of the machine.
    """
    shape, one = RGB.shape[:2], RGB[..., 0]
    grey, four = RGB.mean(axis=2) / 255, np.dstack([RGB, ALPHA])
    alpha = np.maximum(ALPHA, 1)
    multiplied = np.dstack([np.round(RGB * (alpha[..., None] / 255)), alpha]).astype(np.uint8)
    divided = np.minimum(multiplied[..., :3].astype(int) * 255 // alpha[..., None], 255).mean(axis=2) / 255
    ink = (255 - four[..., :3].astype(int)) * (255 - four[..., 3:].astype(int)) / 255**2
    table = np.random.default_rng(5).integers(256, size=(256, 3), dtype=np.uint8)
    for order, deflate in product('<>', (False, True)):
        def deep(values):
            return (values * 257.).astype(f'{order}u2')
        kind = {'order': order, 'deflate': deflate}
        yield tiff(deep(RGB).tobytes(), shape, 16, 2, 3, **kind), grey, None
        yield tiff(deep(four).tobytes(), shape, 16, 2, 4, t338=2, **kind), grey, ALPHA
        yield tiff(deep(four).tobytes(), shape, 16, 2, 4, t338=0, **kind), grey, None
        yield tiff(deep(multiplied).tobytes(), shape, 16, 2, 4, t338=1, **kind), divided, alpha
        yield tiff(deep(four).tobytes(), shape, 16, 5, 4, **kind), ink.mean(axis=2), None
        yield tiff(deep(one).tobytes(), shape, 16, 1, **kind), one / 255, None
        yield tiff(WIDE.astype(f'{order}u2').tobytes(), WIDE.shape, 16, 1, **kind), WIDE / 65535, None
        if order == '<':  # Pillow knows no other
            yield tiff(deep(one).tobytes(), shape, 16, 0, **kind), 1 - one / 255, None
        yield tiff(RGB.tobytes(), shape, 8, 2, 3, **kind), grey, None
        yield tiff(four.tobytes(), shape, 8, 2, 4, t338=2, **kind), grey, ALPHA
        yield tiff(four.tobytes(), shape, 8, 2, 4, t338=0, **kind), grey, None
        yield tiff(multiplied.tobytes(), shape, 8, 2, 4, t338=1, **kind), divided, alpha
        yield tiff(four.tobytes(), shape, 8, 5, 4, **kind), ink.mean(axis=2), None
        yield tiff(RGB[..., :2].tobytes(), shape, 8, 1, 2, t338=2, **kind), one / 255, RGB[..., 1]
        for bits in (1, 2, 4, 8):
            few = one >> 8 - bits
            data, levels = packed(few, bits) if bits < 8 else few.tobytes(), few / (2**bits - 1)
            yield tiff(data, shape, bits, 1, **kind), levels, None
            yield tiff(data, shape, bits, 0, **kind), 1 - levels, None
            colours = table[:2**bits]
            yield (tiff(data, shape, bits, 3, t320=colours.T.ravel() * 257.0, **kind),
                   colours[few].mean(axis=2) / 255, None)
    twelve = packed(DEEP, 12)
    yield tiff(twelve, DEEP.shape, 12, 1), DEEP / 4095, None
    for bits in (1, 2, 4, 8):
        few, colours = one >> 8 - bits, table[:2**bits]
        yield png(few, bits), few / (2**bits - 1), None
        yield png(few, bits, 3, PLTE=colours.tobytes()), colours[few].mean(axis=2) / 255, None
        clear = np.arange(2**bits, dtype=np.uint8)
        yield (png(few, bits, 3, PLTE=colours.tobytes(), tRNS=clear.tobytes()),
               colours[few].mean(axis=2) / 255, clear[few])
        data = np.frombuffer(packed(few, bits), np.uint8).reshape(shape[0], -1) if bits < 8 else few
        data = np.pad(data[::-1], [(0, 0), (0, -data.shape[1] % 4)]).tobytes()
        if bits != 2:
            palette = np.pad(colours[:, ::-1], [(0, 0), (0, 1)]).tobytes()
            yield bmp(data, shape, bits, palette), colours[few].mean(axis=2) / 255, None
    yield bmp(data, shape, 8, np.pad(np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1),
                                     [(0, 0), (0, 1)]).tobytes()), one / 255, None
    yield bmp(b'\0\xff\0\0' * shape[0], (shape[0], 16), 1, bytes(4) + b'\xff\xff\xff\0'), np.repeat(
        [[0., 1.]], 8, axis=1).repeat(shape[0], 0), None
    up = RGB[::-1, :, ::-1]
    yield bmp(up.tobytes(), shape, 24), grey, None
    yield bmp(np.dstack([up, ALPHA]).tobytes(), shape, 32), grey, None
    yield (bmp(np.dstack([up, ALPHA[::-1]]).tobytes(), shape, 32, masks=(0xff0000, 0xff00, 0xff, 0xff000000)),
           grey, ALPHA)
    red, green, blue = np.moveaxis(RGB[::-1].astype(int), 2, 0)
    five = (red >> 3 << 10 | green >> 3 << 5 | blue >> 3).astype('<u2')
    yield bmp(five.tobytes(), shape, 16), (RGB >> 3).mean(axis=2) / 31, None
    six = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype('<u2')
    yield (bmp(six.tobytes(), shape, 16, masks=(0xf800, 0x7e0, 0x1f)),
           ((red >> 3) / 31 + (green >> 2) / 63 + (blue >> 3) / 31)[::-1] / 3, None)
    yield png(one * 257., 16), one / 255, None
    yield png(WIDE, 16), WIDE / 65535, None
    yield png(RGB * 257., 16, 2), grey, None
    yield png(RGB, 8, 2), grey, None
    yield png(RGB[..., :2], 8, 4), one / 255, RGB[..., 1]
    yield png(RGB[..., :2] * 257., 16, 4), one / 255, RGB[..., 1]
    yield png(four, 8, 6), grey, ALPHA
    yield png(four * 257., 16, 6), grey, ALPHA
    yield b'P4 %d %d\n' % shape[::-1] + packed(one < 128, 1), one >= 128, None
    yield pnm('P5', one, 255), one / 255, None
    yield pnm('P2', one % 101, 100), one % 101 / 100, None
    yield pnm('P5', DEEP, 4095), DEEP / 4095, None
    yield pnm('P2', DEEP, 4095), DEEP / 4095, None
    yield pnm('P5', WIDE, 65535), WIDE / 65535, None
    yield pnm('P6', RGB, 255), grey, None
    yield pnm('P3', RGB, 255), grey, None
    yield pnm('P6', RGB * 257., 65535), grey, None
    picture = Image.fromarray(RGB)
    yield saved(picture, 'WEBP', lossless=True), grey, None
    yield saved(Image.fromarray(four), 'WEBP', lossless=True, exact=True), grey, ALPHA
    yield saved(Image.fromarray(one), 'GIF'), one / 255, None


def test_every_way_to_store_pixels_comes_out_as_it_was_meant(tmp_path, monkeypatch):
    """And there is no other that is not refused."""
    real, seen = load_data.stored_pixels, {'LAB', 'CMYK;I'}  # see `test_ink_and_lab…` and `test_jpeg…`
    monkeypatch.setattr(load_data, 'stored_pixels', lambda image: seen.add(real(image)) or real(image))
    for number, (content, grey, alpha) in enumerate(stored()):
        try:
            picture = read(tmp_path, content)
        except InputError as e:
            assert OLD_PILLOW, (number, e)
            continue
        steps = 1 if content[28:30] == b'\x10\0' and content[:2] == b'BM' else 0.51  # 5 or 6 bits are cut off
        assert near(picture.grey * 255, grey * 255., steps), number
        assert (picture.alpha is None if alpha is None else np.array_equal(picture.alpha, alpha)), number
    assert seen == load_data.PIXELS or OLD_PILLOW


OLD_PILLOW = int(PIL.__version__.split('.')[0]) < 12


@pytest.mark.parametrize('quality', [{'quality': 100}, {'progressive': True, 'quality': 95}])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_is_read_but_for_its_loss(mode, quality, tmp_path):
    smooth = Image.fromarray(RGB).resize((720, 480)).convert(mode)
    grey = np.asarray(smooth.convert('RGB')).mean(axis=2)
    assert np.abs(read(tmp_path, saved(smooth, 'JPEG', **quality)).grey * 255 - grey).mean() < 1.5
    if mode == 'RGB' and features.check('avif'):
        assert np.abs(read(tmp_path, saved(smooth, 'AVIF', quality=100)).grey * 255 - grey).mean() < 1.5


@pytest.mark.parametrize('content, grey', {
    'png, turned': (saved(Image.fromarray(WIDE[:9]), 'PNG', exif=TURNED), np.rot90(WIDE[:9], -1) / 65535),
    'tiff, turned': (tiff(WIDE[:9].tobytes(), (9, 64), 16, t274=6), np.rot90(WIDE[:9], -1) / 65535),
    'tiff, packed': (saved(Image.fromarray(WIDE), 'TIFF', compression='tiff_lzw'), WIDE / 65535),
    'tiff where white is 0': (tiff(WIDE.tobytes(), WIDE.shape, 16, 0), 1 - WIDE / 65535)}.values())
def test_deep_grey_is_read_to_its_last_bit(content, grey, tmp_path):
    picture = read(tmp_path, content)
    assert picture.alpha is None and picture.grey.dtype == np.float32
    assert near(picture.grey, grey, 1e-5)


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIGNED = {'shape': (2, 4), 'photometric': 1}
UNKNOWN = {
    **{f'TIFF, {bits} bits, kind {kind}, {order}': tiff(np.arange(8, dtype=f'{order}u{bits // 8}').tobytes(),
                                                       bits=bits, t339=kind, order=order, **SIGNED)
       for bits, kind in [(8, 2), (16, 2), (32, 1), (32, 2)] for order in '<>'},
    'TIFF, fractions': tiff(np.float32([[0.5, 1]]).tobytes(), (1, 2), 32, t339=3),
    'TIFF with a map of bytes': tiff(LEVELS.tobytes(), (16, 16), 8, 3, t320=np.arange(256).repeat(3)),
    'TIFF of brightness and colour': tiff(RGB.tobytes(), (40, 60), 8, 6, 3, t530=[1, 1]),
    'PNG of 2 bits with a clear one': png(LEVELS & 3, 2, tRNS=b'\0\1'),
    'PNG of 4 bits with a clear one': png(LEVELS & 15, 4, tRNS=b'\0\1'),
    'PNG of 16 bits with a clear one': png(RGB * 257., 16, 2, tRNS=b'\1\1' * 3),
    'portable floats': b'PF 1 1 -1.0\n' + np.float32([1, 0, 0]).tobytes()}


@pytest.mark.parametrize('kind', UNKNOWN)
def test_pixels_that_may_come_out_wrong_are_refused(kind, tmp_path):
    with pytest.raises(InputError, match=r'no JPEG, PNG, .* that can be read \(.*\): save it as one of'):
        read(tmp_path, UNKNOWN[kind])


@pytest.mark.parametrize('bits, colour', [(1, 0), (8, 0), (16, 0), (8, 2)])
def test_colour_of_a_png_that_means_transparent(bits, colour, tmp_path):
    white = 2**bits - 1
    values = np.array([[white, white // 3, 0, white // 3]])
    content = png(np.stack([values] * 3, 2) if colour else values, bits, colour,
                  tRNS=struct.pack('>H', white // 3) * (3 if colour else 1))
    picture = read(tmp_path, content)
    assert near(picture.grey, values / white, 1e-6)
    assert np.array_equal(picture.alpha, np.where(values == white // 3, 0, 255))


# ---------------------------------------------------------------------------
# Colour profiles
# ---------------------------------------------------------------------------

def srgb(linear):
    """IEC 61966-2-1: what light becomes."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_light(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def light(lightness):
    """CIE 1976: the light of L* in [0, 1]."""
    return np.where(lightness <= 0.08, lightness / 9.033, ((lightness + 0.16) / 1.16) ** 3)


def profile(space, pcs, **tags):
    """An ICC profile, version 2, by hand."""
    def number(x):
        return struct.pack('>i', round(x * 65536))
    white = b''.join(map(number, (0.9642, 1, 0.8249)))
    tags = {'desc': b'desc\0\0\0\0' + struct.pack('>I', 5) + b'test\0' + bytes(78),
            'wtpt': b'XYZ \0\0\0\0' + white} | tags
    table, data = struct.pack('>I', len(tags)), b''
    for name, content in tags.items():
        table += name.encode() + struct.pack('>2I', 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    kind = b'prtr' if space == 'CMYK' else b'mntr'
    header = struct.pack('>I4sI4s4s4s', 132 + len(table) - 4 + len(data), b'lcms', 0x02100000, kind,
                         space.encode(), pcs.encode())
    header += struct.pack('>6H', 2026, 1, 1, 0, 0, 0) + b'acsp' + bytes(28) + white
    return header.ljust(128, b'\0') + table + data


def curve(function):
    points = np.round(65535 * function(np.linspace(0, 1, 1024))).astype('>u2')
    return b'curv\0\0\0\0' + struct.pack('>I', len(points)) + points.tobytes()


def rgb_profile(function):
    """The primaries of sRGB with some curve."""
    primaries = {'r': (0.4361, 0.2225, 0.0139), 'g': (0.3851, 0.7169, 0.0971), 'b': (0.1431, 0.0606, 0.7142)}
    return profile('RGB ', 'XYZ ', **{f'{c}TRC': curve(function) for c in 'rgb'}, **{
        f'{c}XYZ': b'XYZ \0\0\0\0' + struct.pack('>3i', *(round(65536 * x) for x in xyz))
        for c, xyz in primaries.items()})


def black_ink():
    """CMYK whose lightness is 1 - K, whatever the other inks: a table with two points a side."""
    even, k = np.arange(256, dtype=np.uint8).tobytes(), [(255, 128, 128), (0, 128, 128)]
    identity = b''.join(struct.pack('>i', x) for x in (65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    return profile('CMYK', 'Lab ', A2B0=b'mft1\0\0\0\0' + bytes((4, 3, 2, 0)) + identity + 4 * even
                   + 8 * bytes(k[0] + k[1]) + 3 * even)


X = LEVELS / 255
LINEAR = rgb_profile(lambda x: x)
CURVES = {'gamma 1': lambda x: x, 'gamma 1.8': lambda x: x**1.8, 'gamma 3': lambda x: x**3, 'L*': light}


@pytest.mark.parametrize('name', CURVES)
@pytest.mark.parametrize('kind', ['L', 'LA', '16', 'LA16', 'jpeg'])
def test_grey_profile_is_converted_to_srgb(kind, name, tmp_path):
    icc, expected = profile('GRAY', 'XYZ ', kTRC=curve(CURVES[name])), srgb(CURVES[name](X))
    iccp = {'iCCP': b'x\0\0' + zlib.compress(icc)}
    deep = LEVELS.astype(int) * 257
    alpha = LEVELS[::-1] if 'LA' in kind else None
    content = {'L': lambda: png(LEVELS, 8, **iccp),
               'LA': lambda: png(np.dstack([LEVELS, alpha]), 8, 4, **iccp),
               '16': lambda: png(deep, 16, **iccp),
               'LA16': lambda: png(np.dstack([deep, alpha.astype(int) * 257]), 16, 4, **iccp),
               'jpeg': lambda: saved(Image.fromarray(LEVELS.repeat(8, 0).repeat(8, 1)), 'JPEG', quality=100,
                                     icc_profile=icc)}[kind]()
    picture = read(tmp_path, content)
    grey = picture.grey[4::8, 4::8] if kind == 'jpeg' else picture.grey
    if kind == 'jpeg':
        expected, grey = expected[X > 0.2], grey[X > 0.2]  # darker ones magnify the loss of JPEG
    assert np.abs(grey - expected).max() * 255 < (1.5 if kind == 'jpeg' else 0.8)
    assert np.array_equal(picture.alpha, alpha) if alpha is not None else picture.alpha is None


def test_deep_grey_with_a_profile_keeps_more_than_256_levels(tmp_path):
    icc = profile('GRAY', 'XYZ ', kTRC=curve(CURVES['gamma 1.8']))
    picture = read(tmp_path, png(WIDE, 16, iCCP=b'x\0\0' + zlib.compress(icc)))
    assert len(np.unique(picture.grey)) > 3000
    assert np.abs(picture.grey - srgb((WIDE / 65535) ** 1.8)).max() * 255 < 1


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
@pytest.mark.parametrize('gamma', [1, 1.4, 2.6])
def test_colour_profile_is_converted_to_srgb(gamma, mode, tmp_path):
    image = Image.fromarray(np.dstack([RGB, ALPHA]) if mode == 'RGBA' else RGB)
    image = image.quantize(32) if mode == 'P' else image
    picture = read(tmp_path, saved(image, 'PNG', icc_profile=rgb_profile(lambda x: x**gamma)))
    expected = srgb((np.asarray(image.convert('RGB')) / 255) ** gamma).mean(axis=2)
    assert np.abs(picture.grey - expected).max() * 255 < 1
    assert np.array_equal(picture.alpha, ALPHA) if mode == 'RGBA' else picture.alpha is None


def test_profile_that_moves_levels_by_two_is_converted(tmp_path):
    icc = rgb_profile(lambda x: srgb_light(x)**1.02)
    picture = read(tmp_path, saved(Image.fromarray(RGB), 'PNG', icc_profile=icc))
    assert np.abs(picture.grey - srgb(srgb_light(RGB / 255)**1.02).mean(axis=2)).max() * 255 < 1


def test_ink_and_lab_are_converted_to_srgb(tmp_path):
    ink = np.dstack([LEVELS * 0, LEVELS[::-1], LEVELS.T, LEVELS])
    picture = read(tmp_path, saved(Image.fromarray(ink, 'CMYK'), 'TIFF', icc_profile=black_ink()))
    assert np.abs(picture.grey - srgb(light(1 - X))).max() * 255 < 1.5
    lab = np.dstack([LEVELS, LEVELS * 0, LEVELS * 0])  # the colours are signed
    picture = read(tmp_path, saved(Image.fromarray(lab, 'LAB'), 'TIFF'))
    assert np.abs(picture.grey - srgb(light(X))).max() * 255 < 1.5


@pytest.mark.parametrize('icc', {
    'none': b'', 'noise': b'noise' * 50, 'cut': LINEAR[:200], 'header': LINEAR[:128],
    'other': black_ink(), 'sRGB': ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
    'grey sRGB': profile('GRAY', 'XYZ ', kTRC=curve(srgb_light)),
    'near sRGB': rgb_profile(lambda x: srgb_light(x)**1.008)  # it would move some levels by one
}.values())
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_profile_that_is_broken_or_unsuitable_or_srgb_changes_nothing(icc, mode, tmp_path):
    image = Image.fromarray(RGB if mode == 'RGB' else RGB[..., 0])
    plain = np.asarray(image, float) if mode == 'L' else RGB.mean(axis=2)
    picture = read(tmp_path, saved(image, 'PNG', icc_profile=icc))
    assert near(picture.grey * 255, plain, 1e-4)


def test_colour_profile_on_grey_is_ignored(tmp_path):
    picture = read(tmp_path, saved(Image.fromarray(LEVELS), 'PNG', icc_profile=LINEAR))
    assert near(picture.grey, X, 1e-6)


# ---------------------------------------------------------------------------
# EXIF, text, resolution, pages, camera raw files
# ---------------------------------------------------------------------------

def exif(orientation, *others):
    """EXIF by hand: its orientation, and other entries, 12 bytes each."""
    entries = [struct.pack('<HHIHH', 0x0112, 3, 1, orientation, 0), *others]
    return (b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4)
            + struct.pack('<4i', -1, 0, 3, -2))


@pytest.mark.parametrize('other', {
    'by zero': struct.pack('<HHII', 0x011a, 10, 1, 38), 'unsigned': struct.pack('<HHII', 0x011a, 5, 1, 38),
    'negative': struct.pack('<HHII', 0x829a, 10, 1, 46), 'beyond': struct.pack('<HHII', 0x829a, 5, 1, 10**6),
    'text': struct.pack('<HHI4s', 0x829a, 2, 4, b'abc'),
    'wrong': struct.pack('<HHI4s', 0x0131, 3, 2, b'abcd'),
    'pointer': struct.pack('<HHII', 0x8769, 4, 1, 10**6)}.values())
@pytest.mark.parametrize('orientation, turn', [
    (0, lambda x: x), (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (5, np.transpose), (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x, 2).T), (8, np.rot90),
    (9, lambda x: x)])
def test_of_exif_only_the_orientation_matters(orientation, turn, other, tmp_path):
    picture = read(tmp_path, saved(Image.fromarray(RGB), 'PNG', exif=exif(orientation, other)))
    assert near(picture.grey * 255, turn(GREY), 1e-4)


def test_noise_for_exif_leaves_the_picture_upright(tmp_path):
    for content in (b'Exif\0\0' + b'noise' * 9, exif(6)[:20], b'Exif\0\0II*\0\xff\xff\xff\xff'):
        picture = read(tmp_path, saved(Image.fromarray(RGB), 'WEBP', lossless=True, exif=content))
        assert picture.grey.shape[0] in GREY.shape


@pytest.mark.parametrize('megabytes', [2, 20])
@pytest.mark.parametrize('international', [False, True])
def test_long_text_in_a_png_does_no_harm(megabytes, international, tmp_path):
    text = PngImagePlugin.PngInfo()
    (text.add_itxt if international else text.add_text)('Comment', 'x' * (megabytes << 20), zip=True)
    picture = read(tmp_path, saved(Image.fromarray(RGB), 'PNG', pnginfo=text))
    assert near(picture.grey * 255, GREY, 1e-4)


@pytest.mark.parametrize('name, kind, options', [
    ('a.tif', 'TIFF', {}), ('a.tif', 'TIFF', {'compression': 'tiff_lzw'}), ('a.gif', 'GIF', {}),
    ('a.png', 'PNG', {}), ('a.webp', 'WEBP', {}), ('a.jpg', 'MPO', {})])
def test_of_several_pages_the_first_is_coloured(name, kind, options, tmp_path):
    if kind == 'MPO' and int(PIL.__version__.split('.')[0]) < 11:
        pytest.skip('an old Pillow writes a broken file')
    pages = [Image.new('RGB', (8, 8), (value,) * 3) for value in (50, 100, 200)]
    pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:], **options)
    assert read_picture(tmp_path / name).grey * 255 == pytest.approx(50, abs=2)


@pytest.mark.parametrize('name, is_read', [('a.tif', True), ('a.TIFF', True), ('a.dng', False), ('a', False)])
def test_tiff_is_read_under_its_own_names_only(name, is_read, tmp_path):
    """Raw files of cameras are TIFF inside, and begin with a preview."""
    (tmp_path / name).write_bytes(tiff(LEVELS.tobytes(), LEVELS.shape, 8))
    if is_read:
        assert near(read_picture(tmp_path / name).grey, X, 1e-6)
    else:
        with pytest.raises(InputError, match=f'{name}: no JPEG'):
            read_picture(tmp_path / name)


# ---------------------------------------------------------------------------
# Names and messages
# ---------------------------------------------------------------------------

def test_pattern_that_the_shell_left_is_expanded(run_script, tmp_path):
    for name in ('b.png', 'a.png', 'a.jpg', '[ab].png', 'c.png'):
        Image.new('L', (8, 8)).save(tmp_path / name)
    done = run_script('colourization.py', '--image', '*.jpg', '[bc]*.png', '[ab].png')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines() == [
        f'Wrote outputs/{name}_colour.png' for name in ('a', 'b', 'c', '[ab]')]


@pytest.mark.parametrize('error', [MemoryError, Image.DecompressionBombError('it exceeds the limit')])
def test_too_large_a_picture_is_told_to_be_made_smaller(error, tmp_path, monkeypatch):
    Image.new('L', (8, 8)).save(tmp_path / 'x.png')
    monkeypatch.setattr(Image.Image, 'load', lambda *_: (_ for _ in ()).throw(error))
    monkeypatch.setattr(Image.Image, 'convert', lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match='x.png: .*or make it smaller$'):
        read_picture(tmp_path / 'x.png')


def test_pictures_of_one_name_get_a_result_each(run_script, tmp_path):
    for suffix in ('png', 'bmp', 'gif'):
        Image.new('L', (8, 8)).save(tmp_path / f'a.{suffix}')
    done = run_script('colourization.py', '--image', 'a.png', 'a.bmp', 'a.gif')
    assert done.stdout.splitlines() == [f'Wrote outputs/{name}_colour.png' for name in ('a', 'a_2', 'a_3')]


@pytest.mark.parametrize('one, other', [
    ('X', 'x'), ('ß', 'ss'), ('ä', unicodedata.normalize('NFD', 'ä')),
    ('Ä', unicodedata.normalize('NFD', 'ä'))])
def test_names_that_some_file_systems_hold_for_one_get_two_results(one, other, run_script, tmp_path):
    for name, value in ((one, 50), (other, 200)):
        Image.new('L', (8, 8), value).save(tmp_path / f'{name}.png')
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip('this file system is one of them')
    done = run_script('colourization.py', '--image', f'{one}.png', f'{other}.png')
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / 'outputs').iterdir()) == sorted(
        [f'{one}_colour.png', f'{other}_2_colour.png'])


@unix_only
def test_input_is_not_overwritten_under_another_name(run_script, tmp_path):
    """A hard link has two names, as each file has where case does not count."""
    (tmp_path / 'outputs').mkdir()
    for name in 'ab':
        Image.new('L', (8, 8), 99).save(tmp_path / f'{name}.png')
    os.link(tmp_path / 'b.png', tmp_path / 'outputs/a_colour.png')
    before = (tmp_path / 'b.png').read_bytes()
    done = run_script('colourization.py', '--image', 'a.png', 'b.png')
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/b_colour.png\n'
    assert 'a_colour.png is itself a picture to colour: choose another --outdir' in done.stderr
    assert (tmp_path / 'outputs/a_colour.png').read_bytes() == (tmp_path / 'b.png').read_bytes() == before


# ---------------------------------------------------------------------------
# Large pictures
# ---------------------------------------------------------------------------

def guided(grey, chroma):
    """The guided filter, by SciPy's box filter: slope and offset of chroma [3, h, w] by grey [h, w]."""
    def mean(x):
        ones = uniform_filter(np.ones(x.shape[-2:]), 5, mode='constant')
        return uniform_filter(x, 5, mode='constant', axes=(-2, -1)) / ones
    variance = mean(grey**2) - mean(grey)**2
    slope = (mean(grey * chroma) - mean(grey) * mean(chroma)) / (variance + 1e-3)
    return mean(slope), mean(mean(chroma) - slope * mean(grey))


@pytest.mark.parametrize('shape, sizes', [
    ((1, 999), [(4, 256), (4, 64), (4, 16)]), ((999, 1), [(256, 4), (64, 4), (16, 4)]),
    ((101, 60), [(40, 24), (20, 12), (12, 8)])])  # of the views: about 32x32, 16x16 and 8x8 pixels
@pytest.mark.parametrize('band', [1, 1000, 10**9])
def test_bands_are_the_picture_that_is_coloured_at_once(band, shape, sizes, model, monkeypatch):
    monkeypatch.setattr(colourization, 'BAND', band)
    grey = np.random.default_rng(3).random(shape, dtype=np.float32)
    seen, answers = [], []
    hook = model.register_forward_hook(lambda _, views, answer: seen.extend(views) or answers.append(answer))
    rgb = colourize(grey, model, COLOURS, 0.38, size=32)
    hook.remove()
    first = Image.fromarray(grey).resize(sizes[0][::-1], Image.Resampling.BILINEAR)
    slope = offset = 0
    for size, view, answer in zip(sizes, seen, answers, strict=True):
        small = np.asarray(first.resize(size[::-1], Image.Resampling.BILINEAR))
        assert near(view[0, 0].numpy() * 256 / 255, small, 1e-5)
        tint = scores_to_rgb(answer.detach(), COLOURS, 0.38)[0].astype(float)
        line = guided(small.astype(float), tint - tint.mean(axis=0))
        for size, mode in ((sizes[0], 'bicubic'), ((shape[0], sizes[0][1]), 'bicubic'), (shape, 'bilinear')):
            line = [F.interpolate(torch.as_tensor(x)[None], size, mode=mode)[0] for x in line]
        slope, offset = (whole + 1.4 / 3 * x.numpy() for whole, x in zip((slope, offset), line))
    tint = slope * grey + offset
    with np.errstate(divide='ignore'):
        room = np.minimum((1 - grey) / tint.max(0), grey / -tint.min(0))
    expected = grey[..., None] + np.moveaxis(tint * np.minimum(room, 1), 0, 2)
    assert near(rgb, expected.clip(0, 1), 5e-6)


@pytest.mark.slow
def test_108_megapixels_take_less_than_4_gb(tmp_path):
    if os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') < 6e9:
        pytest.skip('there is too little memory to try')
    Image.fromarray(RGB).resize((12_000, 9000)).save(tmp_path / 'a.jpg')
    assert peak_memory(tmp_path, 'colourization.py', '--image', 'a.jpg') < 4e9
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert Image.open(tmp_path / 'outputs/a_colour.png').size == (12_000, 9000)
