"""Objectives, by the name that a recipe gives them."""

from jointembed.objectives.barlow_twins import BarlowTwins
from jointembed.objectives.byol import BYOL
from jointembed.objectives.clip import CLIP
from jointembed.objectives.cmc import CMC
from jointembed.objectives.cpc import CPC
from jointembed.objectives.deepcluster import DeepCluster
from jointembed.objectives.deepcluster_v2 import DeepClusterV2
from jointembed.objectives.infomin import InfoMin
from jointembed.objectives.moco import MoCo
from jointembed.objectives.objective import Objective
from jointembed.objectives.obow import OBoW
from jointembed.objectives.pirl import PIRL
from jointembed.objectives.siglip import SigLIP
from jointembed.objectives.sigreg import SIGReg
from jointembed.objectives.simclr import SimCLR
from jointembed.objectives.simsiam import SimSiam
from jointembed.objectives.supervised import Supervised
from jointembed.objectives.swav import SwAV
from jointembed.objectives.vicreg import VICReg
from jointembed.objectives.vicregl import VICRegL
from jointembed.objectives.vse import VSE
from jointembed.objectives.wmse import WMSE

OBJECTIVES: dict[str, type[Objective]] = {
    "vicreg": VICReg,
    "barlow_twins": BarlowTwins,
    "vse": VSE,
    "clip": CLIP,
    "siglip": SigLIP,
    "simclr": SimCLR,
    "moco": MoCo,
    "wmse": WMSE,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "deepcluster": DeepCluster,
    "deepcluster_v2": DeepClusterV2,
    "obow": OBoW,
    "sigreg": SIGReg,
    "supervised": Supervised,
    "pirl": PIRL,
    "cpc": CPC,
    "cmc": CMC,
    "infomin": InfoMin,
    "vicregl": VICRegL,
}
