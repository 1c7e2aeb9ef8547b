"""Augmentation by named steps: ``cropping`` chooses parts, ``geometry`` moves pixels, ``intensity`` changes counts."""

from cellvision.data.augment.chain import Augment as Augment
from cellvision.data.augment.chain import build_default_steps as build_default_steps
from cellvision.data.augment.cropping import CropByCells as CropByCells
from cellvision.data.augment.cropping import RandomCrop as RandomCrop
from cellvision.data.augment.cropping import RandomScaleCrop as RandomScaleCrop
from cellvision.data.augment.field import Field as Field
from cellvision.data.augment.field import Step as Step
from cellvision.data.augment.field import compute_background as compute_background
from cellvision.data.augment.field import compute_boxes as compute_boxes
from cellvision.data.augment.geometry import RandomElastic as RandomElastic
from cellvision.data.augment.geometry import RandomFlip as RandomFlip
from cellvision.data.augment.geometry import RandomRotate as RandomRotate
from cellvision.data.augment.geometry import ResizeShortestEdge as ResizeShortestEdge
from cellvision.data.augment.intensity import ChannelJitter as ChannelJitter
from cellvision.data.augment.intensity import GaussianNoise as GaussianNoise
from cellvision.data.augment.intensity import IlluminationField as IlluminationField
from cellvision.data.augment.intensity import PoissonNoise as PoissonNoise
from cellvision.data.augment.intensity import RandomBlur as RandomBlur
from cellvision.data.augment.intensity import RandomGamma as RandomGamma
from cellvision.data.augment.intensity import RandomIntensity as RandomIntensity
from cellvision.data.augment.mixing import Mixing as Mixing
