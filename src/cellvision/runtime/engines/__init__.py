"""Engines of TensorRT and TensorRT-RTX on GPUs."""
