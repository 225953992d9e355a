"""The small profile: a data set that is drawn, in every layout, and models of a size that a laptop trains."""
