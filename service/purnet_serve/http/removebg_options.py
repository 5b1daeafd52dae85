"""The parameters of remove.bg's API, from any of its three kinds of body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import Field, WithJsonSchema, field_validator
from pydantic.json_schema import SkipJsonSchema

from purnet_serve.errors import ParameterError
from purnet_serve.http.parameters import Parameters
from purnet_serve.images.codec import Options
from purnet_serve.images.postprocess import Colour, Margin, Margins, Postprocessing

MAX_PIXELS = {
    "preview": 250_000, "small": 250_000, "regular": 250_000,
    "medium": 1_500_000, "hd": 4_000_000,
    "full": None, "4k": None, "50MP": None, "auto": None,
}  # fmt: skip
"""By `size`: most pixels of the answer, None for as many as the photo has."""
MAX_MARGIN = {"px": 500.0, "%": 50.0}
WHITE: Colour = (255, 255, 255, 255)

Size = Literal["preview", "small", "regular", "medium", "hd", "full", "4k", "50MP", "auto"]


class RemoveBgOptions(Parameters):
    """What remove.bg documents, but for what this service cannot do, which it refuses by name."""

    image_file_b64: str | SkipJsonSchema[None] = Field(None, description="The photo in base64.")
    image_url: str | SkipJsonSchema[None] = Field(
        None, description="https URL of the photo.", examples=["https://a.example/cat.jpg"]
    )
    size: Size = Field(
        "preview",
        description="Most pixels of the answer: `preview` 0.25 million, `medium` 1.5, `hd` 4, "
        "`full` and `auto` as many as the photo has.",
        examples=["auto"],
    )
    format: Literal["auto", "png", "jpg", "webp"] = Field(
        "auto", description="`auto` is PNG, or JPEG on an opaque colour.", examples=["png"]
    )
    channels: Literal["rgba", "alpha"] = Field(
        "rgba", description="The cutout, or the mask alone, 8-bit grey."
    )
    crop: bool = Field(False, description="Cut off what is empty around the object.")
    crop_margin: Annotated[Margins, WithJsonSchema({"type": "string"})] | SkipJsonSchema[None] = (
        Field(
            None,
            description="Room left around the object when cropping, as far as the photo reaches: "
            "one, two or four of `30px` or `10%`.",
            examples=["10%"],
        )
    )
    bg_color: Annotated[Colour, WithJsonSchema({"type": "string"})] | SkipJsonSchema[None] = Field(
        None,
        description="Colour behind the object: hex with 3, 4, 6 or 8 digits, or a name.",
        examples=["81d4fa"],
    )
    type: str | SkipJsonSchema[None] = Field(None, description="A hint that has no effect here.")
    type_level: Literal["none", "1", "2", "latest"] = Field(
        "1", description="`none` leaves out the header `X-Type`."
    )
    semitransparency: bool = Field(True, description="Has no effect here.")
    add_shadow: Literal["false"] = Field("false", description="No shadows are made here.")
    position: Literal["original"] = Field("original", description="Objects stay in their place.")
    scale: Literal["original"] = Field("original", description="Objects keep their size.")
    roi: Literal["0% 0% 100% 100%"] = Field(
        "0% 0% 100% 100%", description="Always the whole photo."
    )

    @field_validator("bg_color", mode="before")
    @classmethod
    def _read_colour(cls, value: str) -> Colour:
        name = value.lower()
        if digits := re.fullmatch(r"#?([0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})", name):
            name = f"#{digits[1]}"
        elif name not in ImageColor.colormap:
            raise ValueError("must be a colour such as 81d4fa, fff or green")
        red, green, blue, *alpha = ImageColor.getrgb(name)
        return red, green, blue, alpha[0] if alpha else 255

    @field_validator("crop_margin", mode="before")
    @classmethod
    def _read_margins(cls, value: str) -> Margins:
        sides = [_margin(part) for part in value.replace(",", " ").split()]
        if len(sides) == 1:
            return sides[0], sides[0], sides[0], sides[0]
        if len(sides) == 2:
            return sides[0], sides[1], sides[0], sides[1]
        if len(sides) == 4:
            return sides[0], sides[1], sides[2], sides[3]
        raise ValueError("must be one, two or four of `30px` or `10%`")

    @classmethod
    def read(cls, items: Sequence[tuple[str, str]]) -> Self:
        """Read the fields of a body; an empty one counts as absent. Raises `ParameterError`."""
        return cls.parse([(name, value) for name, value in items if value])

    def codec_options(self) -> Options:
        """The same for the codec. Raises `ParameterError`."""
        background = self.bg_color
        opaque = background is not None and background[3] == WHITE[3]
        kind = self.format
        if kind == "auto":
            kind = "jpg" if opaque and self.channels == "rgba" else "png"
        if kind == "jpg" and background is None:
            background = WHITE
        elif kind == "jpg" and not opaque:
            detail = "'bg_color' must be opaque where the answer is a JPEG."
            raise ParameterError("bg_color", detail)
        no_margin = Margin(0, "px")
        margins = self.crop_margin or (no_margin, no_margin, no_margin, no_margin)
        return Options(
            output="mask" if self.channels == "alpha" else "cutout",
            format="jpeg" if kind == "jpg" else kind,
            postprocessing=Postprocessing(
                crop=margins if self.crop else None,
                max_pixels=MAX_PIXELS[self.size],
                background=background,
            ),
        )


def _margin(text: str) -> Margin:
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)(px|%)?", text)
    unit: Literal["px", "%"] = "%" if match and match[2] == "%" else "px"
    if match is None or float(match[1]) > MAX_MARGIN[unit]:
        raise ValueError("must be one, two or four of `30px` or `10%`, up to 500px or 50%")
    return Margin(float(match[1]), unit)
