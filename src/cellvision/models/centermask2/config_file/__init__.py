"""CenterMask2 config files of detectron2, read without detectron2."""
