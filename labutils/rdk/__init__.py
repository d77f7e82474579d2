"""D-Robotics' RDK X5: NV12 input, hb_mapper's YAML and calibration folder, the vendor's own tools.

Nothing of the vendor's is installed or brought along; a user's own installation is found and used.
"""
