"""The backbones that several families of the zoo share; one of a single family stands in its file."""
