"""Training, evaluation and benchmarks: they know the two verbs of a detector, never a method."""
