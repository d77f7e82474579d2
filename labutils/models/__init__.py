"""Networks by name: architectures, weights, preprocessing, labels."""
