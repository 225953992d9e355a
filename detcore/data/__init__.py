"""Reading, drawing, transforming and batching images with their annotations."""
