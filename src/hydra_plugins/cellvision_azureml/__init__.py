"""Hydra launcher for Azure ML: ``python train.py trainer=azure`` submits; see docs/azure.md."""
