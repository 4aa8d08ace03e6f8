"""The same horses by the course's way and by the one that goes beyond it.

    python outputs/writeup/comparison.py --data data
    python outputs/writeup/comparison.py --image         # photographs instead, for which no data is needed

Writes `figures/comparison.png`, and prints a table in Markdown: errors against the true pictures
and colourfulness, over the 1,000 test horses. Of photographs it tells how `colourization.py --image` colours
three that are installed with the packages, and draws one into `figures/photograph.png`.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from colourization import (IMAGE_CHECKPOINT, SHOWN, UNet, colourize, draw_pictures,  # noqa: E402
                           load_model, mosaic, process, psnr, put_grey_back, run, scores_to_rgb)
from load_data import InputError, check_writable, load_cifar10  # noqa: E402

ANNEALED = 0.38  # the temperature of Zhang, Isola and Efros (2016)
PAPER = 6.7  # the width of the write-up's text in inches: a font of 9 points comes out as such


def colourfulness(rgb):
    """Mean colourfulness of pictures [N, 3, H, W] in [0, 1]: 0 is grey, 109 extremely colourful.

    Hasler and Süsstrunk (2003), Measuring colourfulness in natural images, their third measure.
    """
    red, green, blue = 255 * np.moveaxis(rgb, 1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var(axis=(2, 3)).sum(axis=0))
    centre = np.sqrt(np.square(opponents.mean(axis=(2, 3))).sum(axis=0))
    return float((spread + 0.3 * centre).mean())


def measure_pictures(pictures, truth):
    """Errors and colourfulness of pictures, arrays [N, 3, H, W] in [0, 1] by name, against the true ones."""
    return {name: {'mean_squared_error': float(np.square(rgb - truth).mean()),
                   'colourfulness': colourfulness(rgb)} for name, rgb in pictures.items()}


@torch.no_grad()
def colour(name, grey, temperature):
    """What a shipped UNet makes of grey pictures [N, 1, H, W]."""
    model, colours = load_model(UNet, ROOT / 'weights' / name)
    return np.concatenate([scores_to_rgb(model(x), colours, temperature)
                           for x in torch.from_numpy(grey).split(100)])


def ways(grey):
    """Grey pictures [N, 1, H, W] coloured in each of the ways that are compared, by name."""
    course, ours = 'unet_k3_f32.pkl', 'unet_prior_k3_f32.pkl'
    pictures = {'grey picture': np.repeat(grey, 3, axis=1),
                'UNet, likeliest colours': colour(course, grey, 0),
                'UNet with prior, likeliest colours': colour(ours, grey, 0),
                'UNet, mean, grey put back': put_grey_back(colour(course, grey, 1), grey)}
    for name, temperature in (('annealed mean', ANNEALED), ('mean', 1)):
        painted = colour(ours, grey, temperature)
        pictures[f'UNet with prior, {name}, grey put back'] = put_grey_back(painted, grey)
    return pictures


def draw(pictures, rgb, outdir):
    rows = pictures | {'truth': rgb}
    shown = 'grey picture', 'UNet, likeliest colours', 'UNet with prior, mean, grey put back', 'truth'
    draw_pictures([(name, mosaic(rows[name][:SHOWN], SHOWN)) for name in shown],
                  outdir / 'comparison.png', '', width=PAPER)


def photographs():
    """Three photographs, RGB [H, W, 3] in [0, 1] with at most 640 pixels a side, by name."""
    from PIL import Image
    from sklearn.datasets import load_sample_images
    paths = [Path(path) for path in load_sample_images().filenames]  # scikit-learn's
    for path in (*sorted(paths), Path(matplotlib.get_data_path(), 'sample_data/grace_hopper.jpg')):
        picture = Image.open(path).convert('RGB')
        picture.thumbnail((640, 640))
        yield path.stem, np.asarray(picture, np.float32) / 255


def chroma(rgb):
    """What is left of pictures [..., 3] without their brightness."""
    return rgb - rgb.mean(axis=-1, keepdims=True)


def compare_photographs(outdir):
    """What --image makes of the grey of photographs.

    The error of the chroma is relative to that of the grey picture, which has none.
    """
    check_writable(outdir / 'photograph.png')
    model, colours = load_model(UNet, ROOT / IMAGE_CHECKPOINT)
    print('| | error of the chroma | colourfulness | of the truth |\n|---|---|---|---|')
    rows, shown = [], {}
    for name, truth in photographs():
        grey = truth.mean(axis=-1)
        coloured = colourize(grey, model, colours)
        error = np.square(chroma(coloured) - chroma(truth)).sum() / np.square(chroma(truth)).sum()
        rows.append([error, *(colourfulness(np.moveaxis(rgb, -1, 0)[None]) for rgb in (coloured, truth))])
        shown[name] = [('grey', grey[..., None]), ('coloured', coloured), ('truth', truth)]
        print('| {} | {:.3f} | {:.1f} | {:.1f} |'.format(name, *rows[-1]))
    print('| mean | {:.3f} | {:.1f} | {:.1f} |'.format(*np.mean(rows, axis=0)))
    draw_pictures(shown['china'], outdir / 'photograph.png', '', columns=3, width=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--image', action='store_true', help='colour photographs instead of horses')
    parser.add_argument('--outdir', type=Path, default=HERE / 'figures', help='where the picture goes')
    args = parser.parse_args()
    if args.image:
        return compare_photographs(args.outdir)
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    rgb, grey = process(*load_cifar10(args.data)[1])
    pictures = ways(grey)

    print('| | mean squared error | PSNR | colourfulness |\n|---|---|---|---|')
    for name, measured in measure_pictures(pictures | {'truth': rgb}, rgb).items():
        error = measured['mean_squared_error']
        distance = f'{error:.5f} | {psnr(error):.2f} dB' if error else '|'
        print(f'| {name} | {distance} | {measured["colourfulness"]:.1f} |')
    draw(pictures, rgb, args.outdir)


if __name__ == '__main__':
    run(main)
