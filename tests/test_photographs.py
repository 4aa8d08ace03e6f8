"""--image: a user's own pictures of every kind, coloured with their own brightness."""

import os
import re
import struct
import textwrap
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
from colourization import CNN, colourize, load_model, save_checkpoint, scores_to_rgb
from conftest import ROOT, fails, near, peak_memory, unix_only
from files import (bmp, chunk, claimed_png, exif, image, others_than, packed, png, pnm, profile, tiff)
from load_data import InputError, read_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
RGB[:, :30] = RGB[:, :30] // 40 * 20 + 50  # calmer, and far from black and white
GREY = RGB.mean(axis=2)
ALPHA = RNG.integers(0, 256, (40, 60), np.uint8)
COLOURS = RNG.random((5, 3), dtype=np.float32)
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CNN(3, 4, 5).eval()


def guided(grey, chroma):
    """The guided filter, by SciPy's box filter: slope and offset of chroma [3, h, w] by grey [h, w]."""
    def mean(x):
        ones = uniform_filter(np.ones(x.shape[-2:]), 5, mode='constant')
        return uniform_filter(x, 5, mode='constant', axes=(-2, -1)) / ones
    variance = mean(grey**2) - mean(grey)**2
    slope = (mean(grey * chroma) - mean(grey) * mean(chroma)) / (variance + 1e-3)
    return mean(slope), mean(mean(chroma) - slope * mean(grey))


@pytest.mark.parametrize('shape, sizes, temperature, saturation', [  # views of about 32x32, 16x16, 8x8 pixels
    ((1, 999), [(4, 256), (4, 64), (4, 16)], 1, 1.4), ((999, 1), [(256, 4), (64, 4), (16, 4)], 0, 1.4),
    ((101, 60), [(40, 24), (20, 12), (12, 8)], 0.38, 2), ((20, 36), [(20, 36), (12, 20), (4, 12)], 1, 0),
    ((5, 3), [(4, 4)] * 3, 1, 0.7)])
@pytest.mark.parametrize('band', [1, 1000, 10**9])
def test_bands_are_the_picture_that_is_coloured_at_once(band, shape, sizes, temperature, saturation, model,
                                                        monkeypatch):
    size = 32 if max(shape) > 5 else 4
    monkeypatch.setattr(colourization, 'BAND', band)
    grey = np.random.default_rng(3).random(shape, dtype=np.float32)
    seen, answers = [], []
    model.register_forward_hook(lambda _, views, answer: seen.extend(views) or answers.append(answer))
    rgb = colourize(grey, model, COLOURS, temperature, size, saturation)
    first = Image.fromarray(grey).resize(sizes[0][::-1], Image.Resampling.BILINEAR)
    slope = offset = 0
    for sides, view, answer in zip(sizes, seen, answers, strict=True):
        small = np.asarray(first.resize(sides[::-1], Image.Resampling.BILINEAR))
        assert near(view[0, 0].numpy() * 256 / 255, small, 1e-5)
        tint = scores_to_rgb(answer.detach(), COLOURS, temperature)[0].astype(float)
        line = guided(small.astype(float), tint - tint.mean(axis=0))
        for sides, mode in ((sizes[0], 'bicubic'), ((shape[0], sizes[0][1]), 'bicubic'), (shape, 'bilinear')):
            line = [F.interpolate(torch.as_tensor(x)[None], sides, mode=mode)[0] for x in line]
        slope, offset = (whole + saturation / 3 * x.numpy()
                         for whole, x in zip((slope, offset), line, strict=True))
    tint = slope * grey + offset
    room = np.minimum((1 - grey) / np.maximum(tint.max(0), 1e-6), grey / np.maximum(-tint.min(0), 1e-6))
    expected = grey[..., None] + np.moveaxis(tint * np.minimum(room, 1), 0, 2)
    assert rgb.dtype == np.float32 and rgb.min() >= 0 and rgb.max() <= 1
    assert near(rgb, expected, 2e-5) and near(rgb.mean(axis=2), grey, 1e-5)


@pytest.mark.parametrize('flags, temperature, size, saturation', [
    ('', 1, 224, 1.4), ('--temperature 0.3 --image_size 16 --saturation 2 -k 3 -f 32', 0.3, 16, 2)])
def test_files_are_coloured_as_the_flags_say_and_keep_their_alpha(flags, temperature, size, saturation,
                                                                  run_script, tmp_path):
    files = {'large.png': image(RGB[..., 0].repeat(8, axis=0).repeat(8, axis=1), 'PNG'),
             'clear.png': image(np.dstack([RGB, ALPHA]), 'PNG'), 'wide.png': image(WIDE, 'PNG')}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    checkpoint = ROOT / 'weights/cnn_k3_f32.pkl'
    done = run_script('colourization.py', '--image', *files, '-m', 'CNN', '--checkpoint', checkpoint,
                      *flags.split(), '--outdir', 'results')
    assert (done.status, done.errors) == (0, '')
    assert done.output.splitlines() == [f'Wrote results/{name[:-4]}_colour.png' for name in files]
    model, colours = load_model(CNN, checkpoint)
    for name in files:
        picture = read_picture(tmp_path / name)
        expected = 255 * colourize(picture.grey, model, colours, temperature, size, saturation)
        painted = np.asarray(Image.open(tmp_path / f'results/{name[:-4]}_colour.png'))
        assert near(painted[..., :3], expected, 0.51)  # rounded
        assert painted.shape[2] == 3 if picture.alpha is None else np.array_equal(painted[..., 3], ALPHA)


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


@pytest.mark.parametrize('temperature', [0, 1])
def test_settings_of_the_caller_change_nothing(temperature, model, tmp_path, request):
    """Neither autocast nor the default of floats."""
    grey = np.random.default_rng(0).random((8, 8), np.float32)
    expected = colourize(grey, model, COLOURS, temperature)
    with torch.autocast('cpu', torch.bfloat16):
        result = colourize(grey, model, COLOURS, temperature)
        assert torch.is_autocast_enabled('cpu')
    assert result.dtype == np.float32
    if temperature:  # the likeliest of random scores may be another one
        assert near(result, expected, 0.02)
    save_checkpoint(model, tmp_path / 'w.pkl', COLOURS)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    model, colours = load_model(CNN, tmp_path / 'w.pkl')
    assert np.array_equal(colourize(grey, model, colours, temperature), expected)


@pytest.mark.parametrize('grey', [
    np.zeros((8, 8), np.uint8), np.full((8, 8), 128.0), np.full((8, 8), np.nan), np.full((8, 8), -0.1),
    np.zeros((8, 8, 3)), np.zeros((0, 8)), [[1, 0]]])
def test_what_is_no_grey_picture_is_refused_by_colourize(grey, model):
    with pytest.raises(ValueError, match=r'\[H, W\] of floats in \[0, 1\]: divide bytes by 255'):
        colourize(grey, model, COLOURS)


# ---- How files store their pixels ----


def is_read_as(folder, content, grey, alpha=None, levels=1e-4):
    """Whether a file is a picture of such a grey (0 to 1), but for some levels of 255, and alpha."""
    path = folder / {b'II*\0': 'x.tif', b'MM\0*': 'x.TIFF'}.get(content[:4], 'x')
    path.write_bytes(content)
    picture = read_picture(path)
    return (picture.grey.dtype == np.float32 and near(picture.grey * 255, grey * 255., levels)
            and (picture.alpha is None if alpha is None else np.array_equal(picture.alpha, alpha)))


DEEP = np.array([[0, 1, 1000, 2048], [2049, 3000, 4094, 4095]], np.uint16)  # of 12 bits
WIDE = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)


def stored():
    """Pictures by how they store their pixels, and the grey (0 to 1) and alpha that they mean.

    Without compression, and with: then libtiff reads them, in the order of the machine.
    """
    one, grey, four = RGB[..., 0], RGB.mean(axis=2) / 255, np.dstack([RGB, ALPHA])
    alpha = np.maximum(ALPHA, 1)
    multiplied = np.dstack([np.round(RGB * (alpha[..., None] / 255)), alpha]).astype(np.uint8)
    divided = np.minimum(multiplied[..., :3].astype(int) * 255 // alpha[..., None], 255).mean(axis=2) / 255
    ink = (255 - four[..., :3].astype(int)) * (255 - four[..., 3:].astype(int)) / 255**2
    table = np.random.default_rng(5).integers(256, size=(256, 3), dtype=np.uint8)
    for order, deflate in product('<>', (False, True)):
        kind = {'order': order, 'deflate': deflate}
        for bits, times in (16, 257.), (8, 1):
            yield tiff(RGB * times, bits, 2, **kind), grey, None
            yield tiff(four * times, bits, 2, t338=2, **kind), grey, ALPHA
            yield tiff(four * times, bits, 2, t338=0, **kind), grey, None
            yield tiff(multiplied * times, bits, 2, t338=1, **kind), divided, alpha
            yield tiff(four * times, bits, 5, **kind), ink.mean(axis=2), None
        yield tiff(one * 257., 16, **kind), one / 255, None
        yield tiff(WIDE, 16, **kind), WIDE / 65535, None
        if order == '<':  # Pillow knows no other
            yield tiff(one * 257., 16, 0, **kind), 1 - one / 255, None
        yield tiff(RGB[..., :2], 8, t338=2, **kind), one / 255, RGB[..., 1]
        for bits in (1, 2, 4, 8):
            few, colours = one >> 8 - bits, table[:2**bits]
            shown = colours[few].mean(axis=2) / 255
            yield tiff(few, bits, 1, **kind), few / (2**bits - 1), None
            yield tiff(few, bits, 0, **kind), 1 - few / (2**bits - 1), None
            yield tiff(few, bits, 3, t320=colours.T.ravel() * 257., **kind), shown, None
    yield tiff(DEEP, 12), DEEP / 4095, None
    for bits in (1, 2, 4, 8):
        few, colours = one >> 8 - bits, table[:2**bits]
        clear, shown = np.arange(2**bits, dtype=np.uint8), colours[few].mean(axis=2) / 255
        yield png(few, bits), few / (2**bits - 1), None
        yield png(few, bits, 3, PLTE=colours.tobytes()), shown, None
        yield png(few, bits, 3, PLTE=colours.tobytes(), tRNS=clear.tobytes()), shown, clear[few]
        if bits != 2:
            yield bmp(few, bits, colours), shown, None
    for values, bits in (one >> 7, 1), (one, 8), (one * 257., 16):
        clear = values[0, 0]  # this grey means transparent
        yield (png(values, bits, tRNS=struct.pack('>H', int(clear))), values / (2**bits - 1),
               np.where(values == clear, 0, 255))
    yield (png(RGB, 8, 2, tRNS=struct.pack('>3H', *RGB[0, 0])), grey,
           np.where((RGB[0, 0] == RGB).all(axis=2), 0, 255))
    yield bmp(one, 8, np.arange(256).repeat(3)), one / 255, None
    yield bmp(one >> 7, 1, [(0, 0, 0), (255, 255, 255)]), one >> 7, None
    yield bmp(RGB[..., ::-1], 24), grey, None
    yield bmp(np.dstack([RGB[..., ::-1], ALPHA]), 32), grey, None
    yield bmp(np.dstack([RGB[..., ::-1], ALPHA]), 32, masks=(0xff0000, 0xff00, 0xff, 0xff000000)), grey, ALPHA
    red, green, blue = np.moveaxis(RGB.astype(int), 2, 0)
    yield bmp(red >> 3 << 10 | green >> 3 << 5 | blue >> 3, 16), (RGB >> 3).mean(axis=2) / 31, None
    yield (bmp(red >> 3 << 11 | green >> 2 << 5 | blue >> 3, 16, masks=(0xf800, 0x7e0, 0x1f)),
           ((red >> 3) / 31 + (green >> 2) / 63 + (blue >> 3) / 31) / 3, None)
    yield png(one * 257., 16), one / 255, None
    yield png(WIDE, 16), WIDE / 65535, None
    yield image(WIDE, 'PNG', exif=exif(6)), np.rot90(WIDE, -1) / 65535, None
    yield tiff(WIDE, 16, t274=6), np.rot90(WIDE, -1) / 65535, None
    yield tiff(WIDE, 16, 0), 1 - WIDE / 65535, None
    yield png(RGB * 257., 16, 2), grey, None
    yield png(RGB, 8, 2), grey, None
    yield png(RGB[..., :2], 8, 4), one / 255, RGB[..., 1]
    yield png(RGB[..., :2] * 257., 16, 4), one / 255, RGB[..., 1]
    yield png(four, 8, 6), grey, ALPHA
    yield png(four * 257., 16, 6), grey, ALPHA
    yield b'P4 60 40\n' + packed(1 - (one >> 7), 1).tobytes(), one >> 7, None
    yield pnm('P5', one, 255), one / 255, None
    yield pnm('P2', one % 101, 100), one % 101 / 100, None
    yield pnm('P5', DEEP, 4095), DEEP / 4095, None
    yield pnm('P2', DEEP, 4095), DEEP / 4095, None
    yield pnm('P5', WIDE, 65535), WIDE / 65535, None
    yield pnm('P6', RGB, 255), grey, None
    yield pnm('P3', RGB, 255), grey, None
    yield pnm('P6', RGB * 257., 65535), grey, None
    yield image(RGB, 'WEBP', lossless=True), grey, None
    yield image(four, 'WEBP', lossless=True, exact=True), grey, ALPHA
    yield image(one, 'GIF'), one / 255, None


def test_every_way_to_store_pixels_comes_out_as_it_was_meant(tmp_path, monkeypatch):
    """And there is no other that is not refused."""
    real, seen = load_data.stored_pixels, {'LAB', 'CMYK;I'}  # see `test_ink_and_lab…` and `test_jpeg…`
    monkeypatch.setattr(load_data, 'stored_pixels', lambda image: seen.add(real(image)) or real(image))
    for number, (content, grey, alpha) in enumerate(stored()):
        cut_off = content[:2] == b'BM' and content[28:30] == b'\x10\0'  # of 5 or 6 bits
        levels = 1 if cut_off else 0.51 if grey.shape != WIDE.shape else 0.003  # to the last of 16 bits
        try:
            assert is_read_as(tmp_path, content, grey, alpha, levels), number
        except InputError as e:
            assert OLD_PILLOW, (number, e)
    assert seen == load_data.PIXELS or OLD_PILLOW


OLD_PILLOW = int(PIL.__version__.split('.')[0]) < 12


@pytest.mark.parametrize('mode, kind, options', [
    *product(['RGB', 'L', 'CMYK'], ['JPEG'], [{'quality': 100}, {'progressive': True, 'quality': 95}]),
    ('RGB', 'AVIF', {'quality': 100})])
def test_jpeg_and_avif_are_read_but_for_their_loss(mode, kind, options, tmp_path):
    if kind == 'AVIF' and not features.check('avif'):
        pytest.skip('this Pillow has no AVIF')
    smooth = Image.fromarray(RGB).resize((720, 480)).convert(mode)
    (tmp_path / 'x').write_bytes(image(smooth, kind, **options))
    grey = np.asarray(smooth.convert('RGB')).mean(axis=2)
    assert np.abs(read_picture(tmp_path / 'x').grey * 255 - grey).mean() < 1.5


# ---- What comes with the pixels ----


def srgb(linear):
    """IEC 61966-2-1: what light becomes."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_light(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def light(lightness):
    """CIE 1976: the light of L* in [0, 1]."""
    return np.where(lightness <= 0.08, lightness / 9.033, ((lightness + 0.16) / 1.16) ** 3)


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


def profiled():
    """Pictures with colour profiles, the grey and alpha that they mean, and how many levels it may miss."""
    x, both, few = LEVELS / 255, np.dstack([LEVELS, LEVELS[::-1]]), Image.fromarray(RGB).quantize(32)
    for brightness in (lambda x: x, lambda x: x**1.8, lambda x: x**3, light):
        icc = {'iCCP': b'x\0\0' + zlib.compress(profile('GRAY', 'XYZ ', kTRC=curve(brightness)))}
        yield png(LEVELS, 8, **icc), srgb(brightness(x)), None, 0.8
        yield png(both, 8, 4, **icc), srgb(brightness(x)), LEVELS[::-1], 0.8
        yield png(both * 257., 16, 4, **icc), srgb(brightness(x)), LEVELS[::-1], 0.8
        yield png(WIDE, 16, **icc), srgb(brightness(WIDE / 65535)), None, 0.8
    for brightness in (lambda x: x, lambda x: x**1.4, lambda x: x**2.6,
                       lambda x: srgb_light(x)**1.02):  # moves levels by two
        for drawn, rgb, alpha in ((RGB, RGB, None), (np.dstack([RGB, ALPHA]), RGB, ALPHA),
                                  (few, np.asarray(few.convert('RGB')), None)):
            yield (image(drawn, 'PNG', icc_profile=rgb_profile(brightness)),
                   srgb(brightness(rgb / 255)).mean(axis=2), alpha, 1)
    ink = Image.fromarray(np.dstack([LEVELS * 0, LEVELS[::-1], LEVELS.T, LEVELS]), 'CMYK')
    yield image(ink, 'TIFF', icc_profile=black_ink()), srgb(light(1 - x)), None, 1.5
    lab = Image.fromarray(np.dstack([LEVELS, LEVELS * 0, LEVELS * 0]), 'LAB')  # the colours are signed
    yield image(lab, 'TIFF'), srgb(light(x)), None, 1.5


def in_vain():
    """Pictures with profiles, EXIF, texts, pages that are broken, unsuitable or of no effect; their grey."""
    linear = rgb_profile(lambda x: x)
    for icc in (b'', b'noise' * 50, linear[:200], linear[:128], black_ink(),
                ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
                profile('GRAY', 'XYZ ', kTRC=curve(srgb_light)),
                rgb_profile(lambda x: srgb_light(x)**1.008)):  # moves some levels by one
        yield image(RGB, 'PNG', icc_profile=icc), GREY / 255
        yield image(LEVELS, 'PNG', icc_profile=icc), LEVELS / 255
    yield image(LEVELS, 'PNG', icc_profile=linear), LEVELS / 255  # of colours, which grey has none
    for noise in b'Exif\0\0' + b'noise' * 9, exif(6)[:20], b'Exif\0\0II*\0' + b'\xff' * 4:
        yield image(RGB, 'WEBP', lossless=True, exif=noise), GREY / 255
    for kind in 'add_text', 'add_itxt':
        text = PngImagePlugin.PngInfo()
        getattr(text, kind)('Comment', 'x' * (20 << 20), zip=True)
        yield image(RGB, 'PNG', pnginfo=text), GREY / 255
    first, *others = (Image.new('RGB', (8, 8), (value,) * 3) for value in (50, 100, 200))  # pages
    for kind in 'TIFF', 'GIF', 'PNG', 'WEBP', *['MPO'] * (not OLD_PILLOW):
        yield image(first, kind, save_all=True, append_images=others), np.full((8, 8), 50 / 255), None, 2


def turned():
    """Pictures by all orientations, with other entries of EXIF that do no harm, and their grey."""
    for entry in ((0x011a, 10, 1, 38), (0x011a, 5, 1, 38),  # by zero, with a sign and without
                  (0x829a, 10, 1, 46), (0x829a, 5, 1, 10**6), (0x8769, 4, 1, 10**6),  # negative, too far
                  (0x829a, 2, 4, 0x636261), (0x0131, 3, 2, 0x64636261)):  # a text, and one as numbers
        for orientation, turn in enumerate((
                np.asarray, np.asarray, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, np.transpose,
                lambda x: np.rot90(x, -1), lambda x: np.rot90(x, 2).T, np.rot90, np.asarray)):
            yield image(RGB, 'PNG', exif=exif(orientation, struct.pack('<HHII', *entry))), turn(GREY) / 255


@pytest.mark.parametrize('pictures', [profiled, in_vain, turned])
def test_what_comes_with_the_pixels_is_obeyed_where_it_means_something(pictures, tmp_path):
    for number, (content, *expected) in enumerate(pictures()):
        assert is_read_as(tmp_path, content, *expected), number


def bad_pictures():
    """By name; the first part is of pixels that may come out wrong."""
    for order, (bits, kind) in product('<>', [(8, 2), (16, 2), (32, 1), (32, 2)]):
        yield f'{bits} bits of kind {kind} {order}.tif', tiff(LEVELS, bits, t339=kind, order=order)
    yield 'fractions.tif', tiff(LEVELS / 255, 32, t339=3)
    yield 'map of bytes.tif', tiff(LEVELS, 8, 3, t320=np.arange(256).repeat(3))
    yield 'brightness and colour.tif', tiff(RGB, 8, 6, t530=[1, 1])
    yield '2 bits with a clear one.png', png(LEVELS & 3, 2, tRNS=b'\0\1')
    yield '4 bits with a clear one.png', png(LEVELS & 15, 4, tRNS=b'\0\1')
    yield '16 bits with a clear one.png', png(RGB * 257., 16, 2, tRNS=b'\1\1' * 3)
    yield 'floats.pfm', b'PF 1 1 -1.0\n' + np.float32([1, 0, 0]).tobytes()
    yield from ((f'{name}.png', content) for name, content in others_than('picture').items())
    yield 'flat.png', claimed_png(0, 5)
    yield 'no pixels.png', claimed_png(700, 700)
    yield 'bomb.png', claimed_png(10**5, 10**5)
    yield 'largest.png', claimed_png(2**31 - 1, 2**31 - 1)
    yield 'text.png', claimed_png(5, 5, chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**8))))
    yield 'program.eps', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'
    yield 'iphone.heic', b'\0\0\0\x24ftypheic\0\0\0\0mif1heic' + bytes(99)
    for kind, suffix in (('PCX', 'pcx'), ('JPEG2000', 'jp2'), ('ICO', 'ico'), ('TIFF', 'dng'), ('TIFF', '')):
        yield f'other.{suffix}', image(RGB, kind)  # raw files of cameras are TIFF inside, with a preview
    for kind, percent in product(('JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'PPM'), (1, 10, 50)):
        whole = image(RGB, kind)
        yield f'{percent}.{kind.replace("TIFF", "tif")}', whole[:len(whole) * percent // 100]
    for name in ('missing.png', '-', 'http:/example.org/a.jpg', 'none?.png', 'folder', ''):
        yield name, None
    for name in ('\x1b[31mred\x07.png', 'two\nlines.png', '馬 äöü.png', os.fsdecode(b'\xff\xfe.png')):
        yield name, b'none'


def test_bad_pictures_get_a_line_each_and_do_not_stop_the_others(tmp_path, run_script):
    files = dict(bad_pictures())
    for folder in 'folder', 'outputs':
        (tmp_path / folder).mkdir()
    (tmp_path / 'outputs/good_colour.png').touch()  # of the day before
    for name, content in (files | {'good.png': image(RGB, 'PNG')}).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    done = run_script('colourization.py', '--image', *list(files)[:9], 'good.png', *list(files)[9:])
    assert done.status == 1 and done.output == 'Wrote outputs/good_colour.png\n'
    for line, name in zip(done.errors.splitlines(), files, strict=True):
        shown = ' '.join(name.replace('\x1b', ' ').replace('\x07', ' ').split()) if name.isprintable() else ''
        assert line.startswith(f'error: {shown}') and len(line) - len(name) < 320 and '<_io' not in line
        assert line.isprintable() and re.search(
            r': no JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM picture that can be read \(.*\): save it as '
            'one of these with 8 bits a channel, or make it smaller$', line)
    assert [path.name for path in (tmp_path / 'outputs').iterdir()] == ['good_colour.png']


@pytest.mark.parametrize('files, results', [
    ('a/x.png b/x.png', 'x x_2'), ('a.png a.bmp a.gif', 'a a_2 a_3'), ('X.png x.png', 'X x_2'),
    ('ß.png ss.png', 'ß ss_2'), ('\xc4.png A\u0308.png', '\xc4 A\u0308_2')])
def test_pictures_of_one_name_get_a_result_each(files, results, run_script, tmp_path):
    """Also where their names differ, but some file systems hold them for one."""
    for number, name in enumerate(files.split()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('L', (8, 8), 50 + 70 * number).save(tmp_path / name)
    if Image.open(tmp_path / files.split()[0]).getpixel((0, 0)) != 50:
        pytest.skip('this file system is one of them')
    done = run_script('colourization.py', '--image', *files.split())
    assert done.output.splitlines() == [f'Wrote outputs/{name}_colour.png' for name in results.split()]
    for number, name in enumerate(results.split()):
        painted = np.asarray(Image.open(tmp_path / f'outputs/{name}_colour.png'))
        assert near(painted.mean(), 50. + 70 * number, 1)


def test_pattern_that_the_shell_left_is_expanded(run_script, tmp_path):
    for name in ('b.png', 'a.png', 'a.jpg', '[ab].png', 'c.png'):
        Image.new('L', (8, 8)).save(tmp_path / name)
    done = run_script('colourization.py', '--image', '*.jpg', '[bc]*.png', '[ab].png')
    assert (done.status, done.errors) == (0, '')
    assert done.output.splitlines() == [
        f'Wrote outputs/{name}_colour.png' for name in ('a', 'b', 'c', '[ab]')]


@unix_only
def test_picture_that_is_to_be_coloured_is_not_replaced_under_any_name(run_script, tmp_path):
    """A hard link has two names, as each file has where case does not count."""
    for name in 'ab':
        Image.new('L', (8, 8), 99).save(tmp_path / f'{name}.png')
    os.link(tmp_path / 'b.png', tmp_path / 'a_colour.png')
    before = (tmp_path / 'b.png').read_bytes()
    done = run_script('colourization.py', '--image', 'a.png', 'b.png', '--outdir', '.')
    assert done.output == 'Wrote b_colour.png\n'
    assert fails(done, 1, 'a_colour.png is itself a picture to colour: choose another --outdir')
    assert (tmp_path / 'a_colour.png').read_bytes() == (tmp_path / 'b.png').read_bytes() == before


@pytest.mark.slow
def test_108_megapixels_take_less_than_4_gb(tmp_path):
    if os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') < 6e9:
        pytest.skip('there is too little memory to try')
    Image.fromarray(RGB).resize((12_000, 9000)).save(tmp_path / 'a.jpg')
    assert peak_memory(tmp_path, 'colourization.py', '--image', 'a.jpg') < 4e9
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert Image.open(tmp_path / 'outputs/a_colour.png').size == (12_000, 9000)


def test_picture_whose_result_would_have_too_long_a_name_does_not_stop_the_others(run_script, tmp_path):
    long = 'n' * 246 + '.png'  # of 255 letters, which are the most, `_colour` is too many
    for name in (long, 'a.png'):
        Image.new('L', (8, 8), 99).save(tmp_path / name)
    done = run_script('colourization.py', '--image', long, 'a.png')
    assert done.output == 'Wrote outputs/a_colour.png\n' and fails(done, 1, 'too long')
    done = run_script('colourization.py', '--image', 'n' * 300, 'a.png')  # and none is there
    assert done.output == 'Wrote outputs/a_colour.png\n' and fails(done, 1, 'too long')
