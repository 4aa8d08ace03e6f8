"""--image: a user's own pictures of every kind, coloured with their own brightness."""

import numpy as np
import pytest
import torch
from PIL import Image

from colourization import CNN, add_prior, colourize, scores_to_rgb

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
        assert np.abs(result[..., :3].mean(axis=2) - grey).max() <= 1, name
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
    Image.new('1', (10_000, 10_000)).save(tmp_path / 'bomb.png')
    Image.fromarray(RGB[..., 0] / np.float32(255)).save(tmp_path / 'fractions.tif')
    broken = ['cut.png', 'empty.jpg', 'missing.png', 'text.jpg', 'folder', 'bomb.png', 'fractions.tif']
    done = run_script('colourization.py', '--image', *broken, 'good.png')
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
    assert rgb.mean(axis=2) == pytest.approx(grey, abs=1e-5)


@pytest.mark.parametrize('temperature', [0, 0.38, 1])
def test_small_picture_is_the_networks_own_chroma_with_the_grey(temperature):
    model = CNN(3, 4, 5).eval()
    add_prior(model, torch.randn(766, 5))  # so that its scores depend on every grey level
    grey = np.random.default_rng(2).uniform(0.45, 0.55, (32, 32)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(grey)[None, None] * 255 / 256)
    pale = COLOURS * 0.4  # so that no colour leaves [0, 1]
    answer = scores_to_rgb(scores, pale, temperature)[0].transpose(1, 2, 0)
    expected = answer - answer.mean(axis=2, keepdims=True) + grey[..., None]
    assert colourize(grey, model, pale, temperature) == pytest.approx(expected, abs=1e-4)


def test_flat_areas_get_smooth_colours_from_a_small_view(model):
    """Between the pixels that the network sees there are no steps."""
    grey = np.full((256, 256), 0.5, np.float32)
    grey[64:192, 64:192] = 0.6
    seen = CNN(3, 4, 5).eval()
    add_prior(seen, 50 * torch.eye(5)[torch.arange(766) % 5])
    rgb = colourize(grey, seen, COLOURS, size=32)
    chroma = rgb - rgb.mean(axis=2, keepdims=True)
    whole = np.ptp(chroma, axis=(0, 1)).max()
    assert whole > 0.02 and np.abs(np.diff(chroma, axis=0)).max() < whole / 3
