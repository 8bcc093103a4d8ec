"""What is evaluated: the network that the words of a command line name, its images and its threat."""
