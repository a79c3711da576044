"""Dead-leaves images: generated pictures with the statistics of photographs.

Opaque leaves with power-law radii, density r^-3, occlude one another; the result is scale-invariant
and has edges of every size, as photographs have (Lee, Mumford and Huang, IJCV 2001). Restoration
networks trained on such images come close to those trained on photographs (Achddou et al., SSVM
2021), closer with varied shapes, textures and a camera (VibrantLeaves, arXiv:2504.10201).

    leaves = far to near: place, size, outline, colour, texture, drawn from one generator
    labels = which leaf is seen at each pixel
    scene  = base colour + shading + stripes + 1/f grain, looked up through the labels
    image  = near leaves over a defocused far scene, light falloff, slight blur, sensor noise

Everything is float64 up to the one rounding at the end, so that pixels agree between machines.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RADIUS_MIN_PX = (1.5, 9.0)  # the smallest leaf of an image, log-uniform: cluttered to calm
COVERAGE = 2.5  # drawn leaf area over image area; what stays bare shows the background leaf
GRAIN_SLOPES = (0.5, 1.0, 1.6)  # amplitude falls as f^-slope: sand, bark, cloud
GRAIN_STRETCHES = (1.0, 3.0, 1.0)  # the middle grain is elongated, as wood and fur are

# Measured on the six training photographs: within an image the standard deviation of Y is 52, that
# of Cb 13 and of Cr 19, correlated by -0.85 (blue against orange); the mean lies at (-10, 14).
CHROMA_CORRELATION = -0.85
CHROMA_STD = (13.0, 19.0)
WARMTH = (-0.8, 0.7)  # mean (Cb, Cr) of an image, in units of CHROMA_STD


@dataclass(frozen=True)
class Leaves:
    """One entry per leaf, far to near; entry 0 is the background, which has no outline.

    Lengths in pixels, angles in radians, colours and amplitudes in 8-bit levels.
    """

    centre: Floats  # [n, 2] as (y, x)
    axes: Floats  # [n, 2] half axes
    angle: Floats
    outline: Ints  # 0 ellipse, 1 rectangle, 2 polygon, 3 lobes
    sides: Floats  # [n, 4] polygon: angles of its cuts; lobes: number and phase
    colour: Floats  # [n, 3] as Y, Cb, Cr
    slope: Floats  # [n, 2] change of Y from centre to rim
    stripe: Floats  # [n, 4] amplitude, cycles per pixel, phase, sharpness
    grain: Floats  # [n, 2] amplitude in Y, share of it in Cb and Cr
    grain_kind: Ints
    grain_offset: Ints  # [n, 2]


def dead_leaves(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image, uint8 [size, size, 3]; the generator's state decides all of it."""
    leaves = _draw_leaves(size, rng)
    grains = np.stack(
        [
            _grain(size, s, stretch, rng)
            for s, stretch in zip(GRAIN_SLOPES, GRAIN_STRETCHES, strict=True)
        ]
    )
    nearest_far = int(len(leaves.angle) * rng.uniform(0.05, 0.4))
    far = _paint(leaves, np.zeros((2 * size, 2 * size), np.int64), 1, nearest_far)
    near = _paint(leaves, far, nearest_far, len(leaves.angle))
    picture = _scene(leaves, near, grains)
    if rng.random() < 0.5:
        focus = _quarters(near >= nearest_far).mean(axis=0)
        defocused = _blur(_scene(leaves, far, grains), rng.uniform(1.0, 5.0))
        picture = focus * picture + (1 - focus) * defocused
    return _develop(picture, rng)


def _draw_leaves(size: int, rng: np.random.Generator) -> Leaves:
    radius = _radii(size, rng)
    n = len(radius)
    stretch = np.exp(rng.exponential(0.35, n)).clip(1, 6)
    colour = _palette(n, rng)
    # A leaf seen from nearer shows coarser stripes: the period follows the radius.
    cycles = 1 / (radius * rng.uniform(0.15, 0.8, n)).clip(2.5, 40)
    stripe_amplitude = rng.exponential(14, n) * (rng.random(n) < 0.15)
    return Leaves(
        centre=rng.uniform(-0.05 * size, 1.05 * size, (n, 2)),
        axes=radius[:, None] * np.stack([np.sqrt(stretch), 1 / np.sqrt(stretch)], axis=1),
        angle=_angles(n, rng),
        outline=rng.choice(4, n, p=(0.35, 0.2, 0.2, 0.25)),
        sides=rng.uniform(0, 1, (n, 4)),
        colour=colour,
        slope=rng.laplace(0, 9, (n, 2)),
        stripe=np.stack(
            [stripe_amplitude, cycles, rng.uniform(0, 2 * np.pi, n), rng.uniform(1, 4, n)], axis=1
        ),
        grain=np.stack(
            [rng.exponential(9, n) * (0.25 + colour[:, 0] / 140), rng.normal(0, 0.15, n)], axis=1
        ),
        grain_kind=rng.choice(len(GRAIN_SLOPES), n),
        grain_offset=rng.integers(0, size, (n, 2)),
    )


def _radii(size: int, rng: np.random.Generator) -> Floats:
    """Radii with density r^-3 between the image's smallest and half its size; the first is all."""
    low, high = np.exp(rng.uniform(*np.log(RADIUS_MIN_PX))), size / 2
    area_mean = 2 * np.pi * np.log(high / low) / (low**-2 - high**-2)
    n = 1 + int(COVERAGE * size**2 / area_mean)
    radius = (low**-2 - rng.random(n) * (low**-2 - high**-2)) ** -0.5
    radius[0] = size
    return radius


def _angles(n: int, rng: np.random.Generator) -> Floats:
    """Angles, half of them near upright or level, as in a world with gravity."""
    upright = rng.integers(0, 2, n) * np.pi / 2 + rng.normal(0, 0.06, n)
    return np.where(rng.random(n) < 0.5, upright, rng.uniform(0, np.pi, n))


def _palette(n: int, rng: np.random.Generator) -> Floats:
    """Colours [n, 3] in Y, Cb, Cr: a few materials under one light, each leaf a little off its own.

    Heavy tails: most materials are near grey, a few are vivid.
    """
    materials = int(rng.integers(3, 9))
    exposure, contrast = rng.normal(-0.4, 0.5), rng.uniform(0.8, 1.8)
    vivid = np.exp(rng.normal(-0.3, 0.8, (materials, 1))).clip(0, 4)
    chroma = (WARMTH + 0.5 * _chroma(1, rng) + _chroma(materials, rng) * vivid) * CHROMA_STD
    own = rng.choice(materials, n, p=rng.dirichlet(np.full(materials, 1.5)))
    light = rng.normal(exposure, contrast, materials)[own] + rng.laplace(0, 0.25, n)
    y = 255 / (1 + np.exp(-light))[:, None]
    # Neither the dark nor the bright holds much colour.
    room = np.minimum(y / 100, (255 - y) / 60).clip(0, 1)
    return np.concatenate([y, (chroma[own] + rng.laplace(0, 2.5, (n, 2))) * room], axis=1)


def _chroma(n: int, rng: np.random.Generator) -> Floats:
    """Pairs (Cb, Cr) [n, 2] of unit variance, correlated as in photographs."""
    pair = rng.standard_normal((n, 2))
    pair[:, 1] = CHROMA_CORRELATION * pair[:, 0] + np.sqrt(1 - CHROMA_CORRELATION**2) * pair[:, 1]
    return pair


def _grain(size: int, slope: float, stretch: float, rng: np.random.Generator) -> Floats:
    """Periodic noise [size, size] of unit variance with amplitude f^-slope, without slow drift."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    f = np.hypot(fy * stretch, fx / stretch)
    band = np.where(f > 2 / size, f, np.inf) ** -slope
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * band, s=(size, size))
    return noise / noise.std()


def _paint(leaves: Leaves, under: Ints, first: int, last: int) -> Ints:
    """Labels at half-pixel steps after leaves first to last - 1 have covered what is under them."""
    labels = under.copy()
    at = (np.arange(len(labels)) - 0.5) / 2
    reach = leaves.axes.max(axis=1)[:, None]
    low, high = np.searchsorted(at, [leaves.centre - reach, leaves.centre + reach])
    for i in range(first, last):
        (top, left), (bottom, right) = low[i], high[i]
        window = labels[top:bottom, left:right]
        window[_inside(leaves, i, at[top:bottom], at[left:right])] = i
    return labels


def _quarters(half_steps: NDArray[Any]) -> NDArray[Any]:
    """The four samples of each pixel, [4, size, size], of a map at half-pixel steps."""
    size = len(half_steps) // 2
    return half_steps.reshape(size, 2, size, 2).transpose(1, 3, 0, 2).reshape(4, size, size)


def _inside(leaves: Leaves, i: int, rows: Floats, cols: Floats) -> NDArray[np.bool_]:
    """Which pixels of the window rows x cols lie within leaf i's outline."""
    y, x = (rows - leaves.centre[i, 0])[:, None], cols - leaves.centre[i, 1]
    cos, sin = np.cos(leaves.angle[i]), np.sin(leaves.angle[i])
    u, v = (x * cos + y * sin) / leaves.axes[i, 0], (y * cos - x * sin) / leaves.axes[i, 1]
    sides = leaves.sides[i]
    match leaves.outline[i]:
        case 1:
            return np.maximum(np.abs(u), np.abs(v)) < 0.7
        case 2:
            inside = u * u + v * v < 1
            for k, jitter in enumerate(sides):
                turn = np.pi / 2 * (k + 0.8 * jitter)
                inside &= u * np.cos(turn) + v * np.sin(turn) < 0.35 + 0.4 * sides[k - 1]
            return inside
        case 3:
            lobes = 2 + np.floor(sides[0] * 6)
            rim = 0.75 + 0.25 * np.sin(lobes * np.arctan2(v, u) + 2 * np.pi * sides[1])
            return u * u + v * v < rim * rim
        case _:
            return u * u + v * v < 1


def _scene(leaves: Leaves, labels: Ints, grains: Floats) -> Floats:
    """The scene [3, size, size]; where a pixel's four samples see several leaves, their mean."""
    quarters = _quarters(labels)
    rows, cols = np.indices(quarters.shape[1:])
    edge = (quarters != quarters[0]).any(axis=0)
    scene = _colour(leaves, quarters[0], rows, cols, grains)
    several = _colour(leaves, quarters[:, edge], rows[edge], cols[edge], grains)
    scene[:, edge] = several.mean(axis=1)
    return scene


def _colour(leaves: Leaves, labels: Ints, rows: Ints, cols: Ints, grains: Floats) -> Floats:
    """Y, Cb, Cr [3, ...] of the leaves that labels [...] name, at pixels (rows, cols)."""
    size = grains.shape[-1]
    y, x = rows - leaves.centre[labels, 0], cols - leaves.centre[labels, 1]
    reach = leaves.axes[:, 0][labels]
    shade = (y * leaves.slope[labels, 0] + x * leaves.slope[labels, 1]) / reach
    amplitude, cycles, phase, sharpness = leaves.stripe.T[:, labels]
    across = y * np.cos(leaves.angle)[labels] - x * np.sin(leaves.angle)[labels]
    wave = np.sin(2 * np.pi * cycles * across + phase)
    stripes = amplitude * (wave * sharpness).clip(-1, 1)
    offset = leaves.grain_offset[labels]
    grain = grains[
        leaves.grain_kind[labels], (rows + offset[..., 0]) % size, (cols + offset[..., 1]) % size
    ]
    grain = grain * leaves.grain[labels, 0]
    tint = grain * leaves.grain[labels, 1]
    return leaves.colour.T[:, labels] + np.stack([shade + stripes + grain, tint, -tint])


def _blur(picture: Floats, sigma_px: float) -> Floats:
    """A Gaussian blur of [..., size, size]; at the borders the weights are renormalised."""
    at = np.arange(picture.shape[-1])
    weights = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma_px**2))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ picture @ weights.T


def _develop(picture: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """8-bit RGB from a scene in Y, Cb, Cr: falloff of light, lens blur, sensor noise."""
    size = picture.shape[-1]
    ramp = np.linspace(-0.5, 0.5, size)
    falloff = rng.normal(0, 0.15, 2)
    light = np.exp(ramp[:, None] * falloff[0] + ramp[None, :] * falloff[1])
    y, cb, cr = _blur(picture * light, rng.uniform(0.3, 0.8))
    # BT.601, full range, as JPEG has it.
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    noisy = rgb + rng.normal(0, rng.exponential(1.0), rgb.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)
