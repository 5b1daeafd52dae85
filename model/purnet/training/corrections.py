"""Where training departs from the authors' released code on purpose, each with its switch."""

from __future__ import annotations

from pydantic import ConfigDict, StrictBool
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Corrections:
    """What a recipe corrects; false trains as the released code does."""

    single_sigmoid: StrictBool = True
    """The structural similarity loss compares region means of saliency. Released: of its sigmoid,
    so that they lie between 0.5 and 0.73 and no prediction can tell regions as far apart as the
    truth does."""
    every_group_decays: StrictBool = True
    """The schedule lowers every learning rate. Released: the backbone's alone; pyramids and heads
    end a stage at the rate they began it with."""
    fill_is_no_region: StrictBool = True
    """Pixels that a rotation fills in belong to no region. Released: to region 0, a real one."""
