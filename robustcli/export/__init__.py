"""Results in the formats that others read: a command per format below `robust export`."""
