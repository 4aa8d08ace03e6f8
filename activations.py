"""What each stage of a trained network makes of a picture (part E).

    python activations.py --model CNN --checkpoint weights/cnn_k3_f32.pkl          # three pictures
    python activations.py 0 5 17 --model UNet --checkpoint weights/unet_k3_f32.pkl

Writes, for each validation picture I, into outputs/act_<model>_<I>/: the input, the maps of the five stages,
the output and the truth, each in a file of its own, and overview_I.png with all of them.
"""

import math
import os
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # which `python -P` leaves out

from colourization import (MODELS, STAGES, Parser, add_file_flags, add_network_flags, draw_pictures,
                           import_matplotlib, load_trained, mosaic, names, number_type, print_result, process,
                           run, scores_to_rgb, user_path)
from load_data import InputError, load_cifar10, progress

import torch  # after colourization, which tells its threads how to wait


def record_activations(model, grey):
    """The output [N, K, H, W] for grey pictures [N, 1, H, W], and the maps [N, C, h, w] of STAGES by name."""
    maps = {}
    hooks = [getattr(model, stage).register_forward_hook(
                 lambda _module, _inputs, output, stage=stage: maps.update({stage: output}))
             for stage in STAGES]
    try:
        with torch.no_grad():
            return model(grey), maps
    finally:
        for hook in hooks:
            hook.remove()


def tile_maps(maps):
    """Maps [C, h, w] in a near-square mosaic, each from black (0) to white (its own maximum)."""
    brightest = maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return mosaic((maps / brightest)[:, None].numpy(), math.ceil(math.sqrt(len(maps))))


def activation_panels(grey, rgb, prediction, maps):
    """What is drawn of one picture: (label, picture) by the name of the file, from grey to colour."""
    stages = {f'out{i}': ('{}: {} maps of {}x{}'.format(name, *maps[name].shape), tile_maps(maps[name]))
              for i, name in enumerate(STAGES)}
    return {'input': ('input: grey', grey.transpose(1, 2, 0)), **stages,
            'output': ('output: the likeliest colours', prediction.transpose(1, 2, 0)),
            'input_rgb': ('input in colour: the truth', rgb.transpose(1, 2, 0))}


def main():
    parser = Parser(__doc__)
    parser.add_argument('index', type=number_type(int, 0), nargs='*', default=[0, 1, 2],
                        help='numbers of validation pictures (default: 0 1 2)')
    flag = parser.add_argument_group('the network').add_argument
    flag('-m', '--model', choices=MODELS, default='CNN', help='default: %(default)s')
    add_network_flags(flag)
    flag('-c', '--colours', type=user_path, metavar='FILE', help="its colours (default: the checkpoint's)")
    add_file_flags(parser.add_argument_group('data and results').add_argument)
    parser.set_defaults(entries=0)
    args = parser.parse_args()
    if not args.checkpoint:
        parser.error('name a trained network with --checkpoint FILE')
    model, colours = load_trained(args)
    network, pictures = names(args, model)
    import_matplotlib()
    rgb, grey = process(*load_cifar10(args.data)[1], category=args.category)
    if max(args.index) >= len(rgb):
        raise InputError(f'there is no picture {max(args.index)}: the last one is {len(rgb) - 1}')
    rgb, grey = rgb[args.index], grey[args.index]
    scores, maps = record_activations(model, torch.from_numpy(grey))
    predictions = scores_to_rgb(scores, colours)

    folders = [args.outdir / f'act_{network}_{index}' for index in args.index]
    for i, index in enumerate(progress(args.index, 'drawing')):
        panels = activation_panels(grey[i], rgb[i], predictions[i], {name: maps[name][i] for name in STAGES})
        for file, panel in panels.items():
            draw_pictures([panel], folders[i] / f'filter_{file}_{index}.png',
                          f'{network}, picture {index}, {pictures}', width=5)
        draw_pictures(list(panels.values()), folders[i] / f'overview_{index}.png',
                      f'{network} from grey to colour: picture {index}, {pictures}', columns=4)
    for folder in folders:
        print_result(f'Wrote {folder}', pictures)


if __name__ == '__main__':
    run(main)
