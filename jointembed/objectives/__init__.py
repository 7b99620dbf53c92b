"""Objectives, by the name that a recipe gives them."""

from jointembed.objectives.barlow_twins import BarlowTwins
from jointembed.objectives.clip import CLIP
from jointembed.objectives.objective import Objective
from jointembed.objectives.siglip import SigLIP
from jointembed.objectives.vicreg import VICReg
from jointembed.objectives.vse import VSE

OBJECTIVES: dict[str, type[Objective]] = {
    "vicreg": VICReg,
    "barlow_twins": BarlowTwins,
    "vse": VSE,
    "clip": CLIP,
    "siglip": SigLIP,
}
