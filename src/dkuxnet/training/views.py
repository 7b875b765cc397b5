"""Weak and strong views of a batch, on its device: one geometry, each its own intensities.

Random parameters are drawn apart from their application, from a generator that is a function of
seed and step: a resumed run draws what the uninterrupted one would have drawn. They are drawn for
the patches of all processes, and applied to those of this one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.core.config import AugmentSettings, ViewSettings
from dkuxnet.core.shares import draw_own, draw_uniform
from dkuxnet.core.types import THICK, Views
from dkuxnet.models.methods.blur import gaussian_blur
from dkuxnet.models.methods.outline import grid_offsets, outline_displacement
from dkuxnet.training.priors import simulated_priors


def make_views(
    image: Tensor,
    label: Tensor | None,
    settings: AugmentSettings,
    generator: torch.Generator,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    classes: int = 0,
    coarse_mm: Sequence[float] | None = None,
    with_priors: bool = False,
) -> Views:
    """Two views of image (B, C, X, Y, Z), label (B, X, Y, Z), whose voxels are the same places.

    They are smaller than the image by `settings.margin` on every side. coarse_mm: edges of a voxel
    of the coarse stage, whose foreground probabilities, of `classes` - 1, are then the views' last
    channels: with_priors those of the image's, and simulated for labelled patches where these are
    NaN or the image has none. Intensities of these stay.

    The image is normalised, the label of any integer type, or None. With `outline` the organs of
    labelled patches have another size in both views, and in the label.
    """
    edges = tuple(float(s / min(spacing_mm)) for s in spacing_mm)
    grid = draw_grid(image, settings, generator, edges)
    if label is not None and settings.outline:
        outwards = _uniform(generator, image.device)(len(image))
        organs = (named(label, classes) > 0).float()[:, None]
        displacement = outline_displacement(organs, outwards, settings.outline, edges)
        # given where a patch was read, wanted where a view looks
        displacement = F.grid_sample(displacement, grid, padding_mode="border", align_corners=False)
        grid = grid + grid_offsets(displacement, image.shape[2:])
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if label is not None:
        values = label[:, None].float()
        values = F.grid_sample(
            values, grid, mode="nearest", padding_mode="border", align_corners=False
        )
        label = values[:, 0].long()
    kept = classes - 1 if coarse_mm else 0
    if coarse_mm and label is not None:
        coarse_edges = [s / min(spacing_mm) for s in coarse_mm]
        prior = simulated_priors(named(label, classes), classes, generator, edges, coarse_edges)
        if with_priors:
            image, given = image[:, :-kept], image[:, -kept:]
            prior = torch.where(given.isnan(), prior, given)
        image = torch.cat([image, prior], dim=1)
    weak = change_intensities(image, settings.weak, edges, generator, kept)
    strong = change_intensities(image, settings.strong, edges, generator, kept)
    return Views(weak, strong, label, edges)


def named(label: Tensor, classes: int) -> Tensor:
    """The label with background where it names no class, see `NetworkShape.merged`.

    classes: 0 where all values are classes.
    """
    return torch.where(label < classes, label, 0) if classes else label


def change_intensities(
    image: Tensor,
    settings: ViewSettings,
    edges: Sequence[float],
    generator: torch.Generator | None = None,
    kept: int = 0,
) -> Tensor:
    """One view of (B, C, X, Y, Z); without a generator drawn from torch's own.

    edges: of a voxel along (X, Y, Z), the shortest is 1. kept: last channels that stay as they are.
    """
    scan = image[:, : image.shape[1] - kept]
    changed = apply_view(scan, draw_view(scan, settings, generator), edges)
    return torch.cat([changed, image[:, -kept:]], dim=1) if kept else changed


def draw_grid(
    image: Tensor, settings: AugmentSettings, generator: torch.Generator, edges: Sequence[float]
) -> Tensor:
    """Sampling grid (B, X, Y, Z, 3) for `grid_sample`: the image without its margin, moved.

    Rotation, scale, flips, shift, then a smooth displacement. edges: of a voxel along (X, Y, Z),
    the shortest is 1. Rotation is of the body: in voxels of unequal edges it would be a shear.
    Thick slices stay what they are: no rotation leaves their plane and no scale reaches across
    them, for what lies between two slices nobody knows.
    """
    batch, device, whole = image.shape[0], image.device, image.shape[2:]

    def side(rows: int) -> Tensor:
        return torch.randint(0, 2, (rows, 1), generator=generator, device=device)

    size = [n - 2 * settings.margin for n in whole]
    uniform = _uniform(generator, device)
    half = torch.tensor([n / 2 for n in size], device=device)  # voxels from the centre to the face

    thick = [edge > THICK for edge in edges]
    about_x, about_y, about_z = (
        max(edges[u], edges[v]) <= THICK * min(edges[u], edges[v])
        for u, v in ((1, 2), (0, 2), (0, 1))
    )
    angles = uniform(batch, 3) * math.radians(settings.rotation)
    angles = angles * torch.tensor([about_x, about_y, about_z], device=device)
    factor = settings.scale ** uniform(batch, 1, 1)
    factor = torch.where(torch.tensor(thick, device=device), 1.0, factor)  # (B, 1, 3)
    spacing = torch.tensor(edges, device=device)
    # voxels -> voxels, about the centre
    matrix = _rotation(angles) * factor * spacing / spacing[:, None]
    for axis, name in enumerate("xyz"):
        if name in settings.flip:
            matrix[:, :, axis] *= 1 - 2 * draw_own(side, batch)
    shift = uniform(batch, 3, 1) * settings.shift / spacing[:, None]
    # grid_sample counts in half sizes and in reverse axis order
    theta = torch.cat([matrix * half / half[:, None], shift / half[:, None]], dim=2).flip(1)
    theta = torch.cat([theta[:, :, :3].flip(2), theta[:, :, 3:]], dim=2)
    grid = F.affine_grid(theta, [batch, 1, *size], align_corners=False)
    if settings.elastic:
        coarse = uniform(batch, 3, 4, 4, 4) * settings.elastic / spacing.view(3, 1, 1, 1)
        smooth = F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)
        grid = grid + grid_offsets(smooth)
    if not settings.margin:
        return grid
    # from half sizes of the view to those of the image
    return grid * grid.new_tensor([n / m for n, m in zip(size, whole, strict=True)][::-1])


@dataclass
class ViewParameters:
    """What `apply_view` needs; None is off.

    Factors (B, 1, 1, 1, 1), noise and field at full size, a mask of blanked voxels. reach: voxels
    that the blur reads to either side.
    """

    contrast: Tensor
    brightness: Tensor
    gamma: Tensor | None
    sigma: Tensor | None
    reach: int
    field: Tensor | None
    noise: Tensor | None
    blank: Tensor | None


def draw_view(
    image: Tensor, settings: ViewSettings, generator: torch.Generator | None
) -> ViewParameters:
    """Draw the intensity changes of one view; gamma, blur and cutout for half of the patches."""
    batch, device, size = image.shape[0], image.device, image.shape[2:]
    uniform = _uniform(generator, device)

    def each() -> Tensor:
        return uniform(batch, 1, 1, 1, 1)

    def half_of() -> Tensor:
        return (each() > 0).float()

    def normal(rows: int) -> Tensor:
        return torch.randn((rows, *image.shape[1:]), generator=generator, device=device)

    field = noise = blank = None
    if settings.bias_field:
        coarse = uniform(batch, 1, 3, 3, 3) * settings.bias_field
        field = F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True).exp()
    if settings.noise:
        strength = each().abs() * settings.noise
        noise = strength * draw_own(normal, batch)
    if settings.cutout:
        blank = _draw_box(batch, size, settings.cutout, uniform) * half_of()
    return ViewParameters(
        contrast=settings.contrast ** each(),
        brightness=settings.brightness * each(),
        gamma=settings.gamma ** (each() * half_of()) if settings.gamma > 1 else None,
        sigma=settings.blur * each().abs() * half_of() if settings.blur else None,
        reach=math.ceil(3 * settings.blur),
        field=field,
        noise=noise,
        blank=blank,
    )


def apply_view(
    image: Tensor, p: ViewParameters, edges: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Apply the drawn intensity changes to (B, C, X, Y, Z); the input stays as it is.

    edges: of a voxel along (X, Y, Z), the shortest is 1.
    """
    low = image.amin(dim=(2, 3, 4), keepdim=True)
    span = (image.amax(dim=(2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    if p.gamma is not None:
        image = ((image - low) / span).clamp(0, 1).pow(p.gamma) * span + low
    if p.field is not None:
        image = (image - low) * p.field + low
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    image = (image - mean) * p.contrast + mean + p.brightness
    if p.sigma is not None:
        image = gaussian_blur(image, p.sigma.flatten(), p.reach, edges)
    if p.noise is not None:
        image = image + p.noise
    if p.blank is not None:
        image = image * (1 - p.blank) + mean * p.blank
    return image


def _uniform(generator: torch.Generator | None, device: torch.device) -> Callable[..., Tensor]:
    """Draws from [-1, 1) of a given shape, whose first number is that of the patches."""
    return partial(draw_uniform, device=device, generator=generator)


def _rotation(angles: Tensor) -> Tensor:
    """(B, 3) angles about x, y, z in radians -> (B, 3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(1), angles.cos().unbind(1)
    one, zero = torch.ones_like(sx), torch.zeros_like(sx)
    x = torch.stack([one, zero, zero, zero, cx, -sx, zero, sx, cx], 1).view(-1, 3, 3)
    y = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).view(-1, 3, 3)
    z = torch.stack([cz, -sz, zero, sz, cz, zero, zero, zero, one], 1).view(-1, 3, 3)
    return z @ y @ x


def _draw_box(batch: int, size: torch.Size, share: float, uniform: Callable[..., Tensor]) -> Tensor:
    """A box a patch, (B, 1, X, Y, Z) of 0 and 1, each edge up to `share` of the patch's."""
    box = torch.ones(())
    for axis, n in enumerate(size):
        centre, half = uniform(batch, 1), uniform(batch, 1).abs() * share
        place = torch.linspace(-1, 1, n, device=centre.device)
        shape = [batch, 1, 1, 1, 1]
        shape[2 + axis] = n
        box = box.to(place) * ((place - centre).abs() <= half).float().view(shape)
    return box
