"""Training with the rounding in place (QAT), and the QDQ file of the trained network."""
