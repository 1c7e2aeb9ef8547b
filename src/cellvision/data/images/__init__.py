"""Image files in and out: TIFF, OME-TIFF, PNG and JPEG as raw counts; numpy and the decoders only, never torch."""

from cellvision.data.images.info import ImageInfo as ImageInfo
from cellvision.data.images.reading import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from cellvision.data.images.reading import ImageReader as ImageReader
from cellvision.data.images.reading import image_stem as image_stem
from cellvision.data.images.reading import list_images as list_images
from cellvision.data.images.reading import open_image as open_image
from cellvision.data.images.reading import read_image as read_image
from cellvision.data.images.reading import read_info as read_info
from cellvision.data.images.reading import read_label_image as read_label_image
