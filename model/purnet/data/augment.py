"""How training samples are varied: settings, and torchvision's transforms made of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2

from purnet.data.settings import Fraction, NotNegative, Settings
from purnet.data.superpixels import IGNORE


class SoftMask(tv_tensors.Image):  # type: ignore[misc]
    """A grey mask: moved with the photo and interpolated like it, never recoloured."""


class Regions(tv_tensors.Mask):  # type: ignore[misc]
    """Superpixel labels: moved with the photo, nearest neighbour."""


class Augmentation(Settings):
    """How training samples are varied. The defaults vary nothing."""

    min_crop: Annotated[Fraction, Field(gt=0)] = 1.0
    """Least part of the photo's area that a random crop keeps."""
    flip: Fraction = 0.0
    """Probability of a mirror image."""
    rotate_deg: NotNegative = 0.0
    """Rotations are drawn from ± this many degrees."""
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[NotNegative, Field(le=0.5)] = 0.0
    """A part of the colour circle; half of it either way is all of it."""
    grey: Fraction = 0.0
    """Probability of losing all colour."""
    copy_paste: Fraction = 0.0
    """Probability of laying the object on a part of another photo where nothing is salient."""

    def geometry(self, size: int, *, region_fill: int = IGNORE) -> v2.Transform:
        """What moves photo, mask and regions together, to (size, size).

        `region_fill` labels the pixels that a rotation fills in.
        """
        steps: list[Any] = []
        if self.rotate_deg:
            steps.append(
                v2.RandomRotation(
                    self.rotate_deg,
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill={tv_tensors.Image: 127, SoftMask: 0, Regions: region_fill},
                )
            )
        if self.min_crop < 1:
            steps.append(v2.RandomResizedCrop(size, scale=(self.min_crop, 1), ratio=(0.7, 1.4)))
        else:
            steps.append(v2.Resize((size, size)))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        return v2.Compose(steps)

    def colour(self) -> v2.Transform:
        """What changes the photo alone."""
        steps: list[Any] = [
            v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        ]
        if self.grey:
            steps.append(v2.RandomGrayscale(self.grey))
        return v2.Compose(steps)
