"""A network from anywhere: a run, a checkpoint, a weights file, a script, timm or torchvision."""
