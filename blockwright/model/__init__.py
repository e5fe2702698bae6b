"""A heterogeneous decoder in torch: build it from a parent, save it, load it."""
