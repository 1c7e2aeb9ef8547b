"""Pruning, distillation and quantisation during training."""
