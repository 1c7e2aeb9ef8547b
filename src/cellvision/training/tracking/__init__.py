"""What is told of a run to those who keep the runs of many: MLflow, ClearML, and how busy the machine was."""
