"""Building blocks: convolution with norm and activation, pooling of regions."""
