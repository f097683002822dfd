"""The groups of the Tux Paint stamps: their nouns, which of them overlap, and which stamps their folder misnames."""

from __future__ import annotations

from itertools import chain

from opsin.synthesize.context import Group

GROUPS = (
    Group("animals", "an animal", "animals"),
    Group("clothes", "a piece of clothing", "pieces of clothing"),
    Group("food", "a food item", "food items"),
    Group("hobbies"),
    Group("household", "a household item", "household items"),
    Group("medical"),
    Group("military"),
    Group("natural forces"),
    Group("people"),
    Group("plants"),
    Group("seasonal"),
    Group("space"),
    Group("sports", "a sports item", "sports items"),
    Group("town"),
    Group("vehicles", "a vehicle", "vehicles"),
)
"""The top folders but `symbols`. Nouns only where every stamp of the folder bears them."""

_OVERLAPS = {
    "seasonal": ("animals", "clothes", "food", "household", "people", "plants"),
    "military": ("people", "vehicles"),
    "plants": ("food",),
    "sports": ("clothes", "hobbies"),
    "household": ("hobbies", "town"),
    "medical": ("people",),
    "space": ("natural forces", "people", "vehicles"),
    "town": ("vehicles",),
}
CLOSE = frozenset(chain.from_iterable((frozenset((a, b)) for b in others) for a, others in _OVERLAPS.items()))
"""Pairs of groups that share things: an Easter bunny is an animal, an astronaut a person."""

READABLE_FOLDERS = {
    "arttools": "art tools",
    "body_parts": "body parts",
    "masstransit": "mass transit",
    "naturalforces": "natural forces",
    "newyears": "new year",
    "roadsigns": "road signs",
}
STYLE_FOLDERS = frozenset({"cartoon", "plastic", "toys"})
"""Folders that say how a thing is drawn or made, not what it is."""

LEFT_OUT_FOLDERS = frozenset({"symbols"})
"""Letters, digits and coins: nothing to see but text."""

MISFILED = frozenset(
    {
        "animals/insects/cartoon/wings",
        "clothes/button",
        "clothes/clothespin_new",
        "clothes/clothespin_old",
        "military/fireman240a",
        "military/final-roll-call",
        "people/body_parts/eye",
        "vehicles/7spoke256",
        "vehicles/emergency/sedan_police",
        "vehicles/locomotive/cartoon/trainSign",
        "vehicles/wheel_tractor",
    }
)
"""Stamps that are not what their folder says (a wheel is no vehicle), so statements about the group would be false."""
