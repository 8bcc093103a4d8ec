"""Images for training and evaluation: data sets, their splits on a device, augmentation, labels and mixers."""
