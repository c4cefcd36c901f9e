"""Algorithm 1: from a noisy data set to a training set with reasoning traces."""
