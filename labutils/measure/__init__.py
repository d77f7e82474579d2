"""What a network costs: parameters, MACs, moved bytes, latency, layer by layer."""
