"""Parts of a layer: norms, positions, attention, MLPs, experts, and the matmul they share."""
