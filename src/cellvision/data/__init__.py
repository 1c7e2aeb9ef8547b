"""Images and annotations on disk or generated, splits, augmentation and batches; nothing is imported here."""
