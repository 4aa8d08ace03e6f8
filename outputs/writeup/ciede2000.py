"""How different two colours look: CIELAB, and the difference CIEDE2000 (A.3)."""

import numpy as np

RGB_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375],  # of sRGB, IEC 61966-2-1
                       [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])


def rgb_to_lab(rgb):
    """CIELAB of sRGB colours [..., 3] in [0, 1], for the white of D65: CIE 15."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(first, second):
    """The difference of CIELAB colours [..., 3] as people measure it.

    Sharma, Wu and Dalal (2005), The CIEDE2000 color-difference formula.
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)

    def chroma_factor(chroma):
        return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    stretch = 1.5 - chroma_factor((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) / 2
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    lightness, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, np.radians(h1 + turn / 2)
    scale = (1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
             + 0.32 * np.cos(3 * hue + np.radians(6)) - 0.2 * np.cos(4 * hue - np.radians(63)))
    of_l = (l2 - l1) / (1 + 0.015 * (lightness - 50)**2 / np.sqrt(20 + (lightness - 50)**2))
    of_c = (c2 - c1) / (1 + 0.045 * chroma)
    of_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * scale)
    blue = np.radians(60) * np.exp(-(((np.degrees(hue) % 360 - 275) / 25)**2))
    return np.sqrt(of_l**2 + of_c**2 + of_h**2 - 2 * np.sin(blue) * chroma_factor(chroma) * of_c * of_h)
