"""Drawing of phantoms: three bodies, and foci that differ in one trait while brightness, size and shape are shared.

Pictures are drawn on [-1,1] x [-1,1] (x to the right, y down): more pixels show the same body more finely.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
Modality = Literal["ct", "mr", "xray"]
Trait = Literal["even", "mottled", "solid", "rimmed", "pleural", "hilar"]


@dataclass(frozen=True)
class Ellipse:
    """An organ, as far as placing foci is concerned."""

    x: float
    y: float
    width: float
    height: float

    def radius(self, side: int) -> Plane:
        """Elliptical distance of every pixel from the centre: 1 on the border."""
        y, x = grid(side)
        distance: Plane = np.sqrt(((x - self.x) / self.width) ** 2 + ((y - self.y) / self.height) ** 2)
        return distance


@dataclass(frozen=True)
class Focus:
    """A blob of random outline; `trait` alone tells kinds of foci apart."""

    trait: Trait
    x: float
    y: float
    radius: float
    stretch: float
    angle: float
    waves: tuple[tuple[float, float], ...]
    softness: float
    contrast: float


@dataclass(frozen=True)
class Body:
    """A picture (S,S) without foci, where foci may lie (S,S) in [0,1], and the organs they are placed in."""

    picture: Plane
    inside: Plane
    organs: tuple[Ellipse, ...]


@lru_cache(maxsize=4)
def grid(side: int) -> tuple[Plane, Plane]:
    """y (S,1) and x (1,S) of the pixels' centres."""
    axis: Plane = (2 * np.arange(side) + 1) / side - 1
    return axis[:, None], axis[None, :]


@lru_cache(maxsize=32)
def _bumps(side: int, cells: int) -> Plane:
    axis = (np.arange(side) + 0.5) / side * cells
    weights: Plane = np.exp(-((axis[:, None] - np.arange(-1, cells + 1) - 0.5) ** 2) / 1.1)
    weights /= np.sqrt(np.square(weights).sum(axis=1, keepdims=True))
    return weights


def field(rng: np.random.Generator, side: int, cells: int, drift: float = 0.0) -> Plane:
    """Smooth noise (S,S) of unit variance with `cells` grains across; `drift` (radians) leads on to the next slice."""
    here, there = rng.standard_normal((2, cells + 2, cells + 2))
    bumps = _bumps(side, cells)
    noise: Plane = bumps @ (np.cos(drift) * here + np.sin(drift) * there) @ bumps.T
    return noise


def _edge(distance: Plane, width: float) -> Plane:
    """1 where `distance` < 1, falling smoothly to 0 over `width` about it."""
    ramp = np.clip((1 - distance) / width + 0.5, 0, 1)
    smooth: Plane = ramp * ramp * (3 - 2 * ramp)
    return smooth


def draw_body(modality: Modality, rng: np.random.Generator, side: int, drift: float) -> Body:
    """The body of one patient at one level: equal `rng` states give the same patient, `drift` moves along the axis."""
    draw = {"ct": _draw_ct, "mr": _draw_mr, "xray": _draw_xray}[modality]
    return draw(rng, side, drift)


def _draw_ct(rng: np.random.Generator, side: int, drift: float) -> Body:
    """Axial chest: body wall with ribs, spine, heart, and two lungs crossed by vessels."""
    y, x = grid(side)
    wide, high, lean = rng.uniform((0.84, 0.64, -0.04), (0.92, 0.74, 0.04))
    lung_high = high * (0.74 - 0.06 * np.sin(drift))
    lungs = (Ellipse(-0.43, lean, 0.34, lung_high), Ellipse(0.45, lean, 0.31, lung_high))
    waver = 1 + 0.05 * field(rng, side, 5, drift)
    body = Ellipse(0, 0, wide, high).radius(side)
    picture = 0.5 * _edge(body, 0.02) + 0.06 * field(rng, side, 14, drift) * _edge(body, 0.05)
    picture += 0.32 * _edge(Ellipse(0, high * 0.62, 0.12, 0.13).radius(side), 0.3)
    spokes = np.cos(9 * np.arctan2(y, x) + 2 * drift + rng.uniform(0, 6))
    picture += 0.3 * np.exp(-(((body - 0.87) / 0.035) ** 2)) * np.clip(3 * spokes, 0, 1)
    inside = np.maximum(*(_edge(lung.radius(side) * waver, 0.07) for lung in lungs))
    heart = _edge(Ellipse(0.12, -0.18, 0.27, 0.3).radius(side) * waver, 0.1)
    inside = inside * (1 - heart)
    air = 0.11 + 0.02 * field(rng, side, 6, drift) + 0.2 * _vessels(rng, side, drift, 26)
    return Body(picture * (1 - inside) + air * inside, inside, lungs)


def _draw_mr(rng: np.random.Generator, side: int, drift: float) -> Body:
    """Axial head: scalp, dark fluid, folded cortex, two ventricles."""
    _, x = grid(side)
    wide, high = rng.uniform((0.64, 0.78), (0.72, 0.86))
    waver = 1 + 0.02 * field(rng, side, 4, drift)
    head = Ellipse(0, 0, wide + 0.13, high + 0.12).radius(side) * waver
    brain = Ellipse(0, 0, wide, high)
    depth = brain.radius(side) * waver
    inside = _edge(depth, 0.06)
    folds = np.exp(-((field(rng, side, 24, drift) / 0.35) ** 2)) * np.clip((depth - 0.45) / 0.5, 0, 1)
    tissue = 0.47 + 0.025 * field(rng, side, 8, drift) - 0.06 * np.clip(depth, 0, 1) - 0.13 * folds
    tissue -= 0.2 * np.exp(-((x / 0.02) ** 2)) * np.clip((depth - 0.5) / 0.3, 0, 1)
    span = 0.26 + 0.05 * np.sin(drift)
    horns = (Ellipse(sign * 0.11, -0.06, 0.065, span) for sign in (-1, 1))
    fluid = np.maximum(*(_edge(horn.radius(side) * waver, 0.35) for horn in horns))
    tissue -= 0.26 * fluid
    scalp = 0.62 * np.exp(-(((head - 0.95) / 0.05) ** 2))
    picture = scalp + 0.1 * _edge(head, 0.04) * (1 - inside)
    picture = picture * (1 - inside) + tissue * inside
    return Body(picture, inside * (1 - fluid), (Ellipse(0, 0, wide * 0.9, high * 0.9),))


def _draw_xray(rng: np.random.Generator, side: int, drift: float) -> Body:
    """Frontal chest: two lungs behind ribs, heart, spine, and the domes of the diaphragm."""
    y, x = grid(side)
    waver = 1 + 0.04 * field(rng, side, 4, drift)
    high = rng.uniform(0.68, 0.76) + 0.02 * np.sin(drift)
    lungs = (Ellipse(-0.42, -0.02, 0.34, high), Ellipse(0.42, -0.02, 0.33, high))
    inside = np.maximum(*(_edge(lung.radius(side) * waver, 0.1) for lung in lungs))
    dome = 0.5 + 0.05 * np.cos(3 * x)
    inside = inside / (1 + np.exp(np.clip((y - dome) / 0.03, -50, 50)))
    heart = _edge(Ellipse(0.13, 0.26, 0.32, 0.32).radius(side) * waver, 0.2)
    trunk = 0.66 * _edge(np.abs(x) / (0.93 - 0.12 * np.clip(-y, 0, 1)), 0.06)
    picture = trunk + 0.03 * field(rng, side, 6, drift)
    lung = 0.3 + 0.02 * field(rng, side, 7, drift) + 0.07 * _vessels(rng, side, drift, 18)
    picture = picture * (1 - inside) + lung * inside
    arcs = np.cos(2 * np.pi * (y * 4.2 - 1.5 * x * x + rng.uniform(0, 1) + 0.05 * drift))
    picture += 0.06 * np.clip(arcs * 2 - 0.7, 0, 1) * trunk
    picture += 0.2 * np.maximum(heart, 0.7 * _edge(np.abs(x) / 0.1, 0.5)) * inside
    return Body(picture, inside * (1 - heart), lungs)


def _vessels(rng: np.random.Generator, side: int, drift: float, cells: int) -> Plane:
    """Thin bright branches: where a smooth field crosses zero, thinned out by another."""
    branches = np.exp(-((field(rng, side, cells, drift) / 0.12) ** 2))
    return branches * np.clip(field(rng, side, cells // 2, drift), 0, 1)


def draw_focus(focus: Focus, body: Body, rng: np.random.Generator, drift: float) -> tuple[Plane, NDArray[np.bool_]]:
    """The brightness (S,S) that `focus` adds to `body`, and its extent (S,S).

    The mean over the extent is `contrast` whatever the trait, so that brightness does not tell kinds apart.
    """
    side = body.picture.shape[0]
    distance = _outline_distance(focus, side)
    extent = (distance < 1) & (body.inside > 0.5)
    grain = field(rng, side, 60, drift)
    profile = np.ones_like(distance)
    if focus.trait == "mottled":
        profile = np.clip(1 + 0.6 * grain, 0.1, 2.2)
    elif focus.trait == "rimmed":
        profile = 0.5 + 1.1 * np.exp(-(((distance - 0.8) / 0.16) ** 2))
    added = profile * _edge(distance, focus.softness) * body.inside
    return added * (focus.contrast / max(added[extent].mean(), 1e-6) if extent.any() else 0.0), extent


def share_inside(focus: Focus, body: Body) -> float:
    """Share of points on a circle well within `focus` that lie where foci may."""
    side = body.picture.shape[0]
    angles = np.arange(16) * (np.pi / 8)
    points = np.stack([focus.y + 0.75 * focus.radius * np.sin(angles), focus.x + 0.75 * focus.radius * np.cos(angles)])
    rows, columns = np.clip(((points + 1) / 2 * side).astype(np.intp), 0, side - 1)
    return float((body.inside[rows, columns] > 0.5).mean())


def _outline_distance(focus: Focus, side: int) -> Plane:
    """Distance (S,S) from the centre over that of the outline in the same direction: 1 on the outline."""
    # Beyond this box no outline and no border reaches, and most of a picture lies beyond.
    reach = 2.4 * focus.radius
    rows, columns = (
        slice(*np.clip(((np.array([c - reach, c + reach]) + 1) / 2 * side).astype(np.intp), 0, side))
        for c in (focus.y, focus.x)
    )
    y, x = grid(side)[0][rows], grid(side)[1][:, columns]
    cosine, sine = np.cos(focus.angle), np.sin(focus.angle)
    along = (cosine * (x - focus.x) + sine * (y - focus.y)) / focus.stretch
    across = (cosine * (y - focus.y) - sine * (x - focus.x)) * focus.stretch
    direction = np.arctan2(across, along)
    outline = sum((a * np.cos(k * direction + phase) for k, (a, phase) in enumerate(focus.waves, 2)), np.float64(1))
    distance = np.full((side, side), np.inf)
    distance[rows, columns] = np.sqrt(along**2 + across**2) / (focus.radius * outline)
    return distance
