"""From files on the disk to batches: reading, preprocessing, splits, order, augmentation, cache, loader."""
