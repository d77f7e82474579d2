"""A stand-in for D-Robotics' quantizer: the interface that `labutils.rdk.vendor_program` states.

It is written from that interface alone, and nothing of the vendor's is in it. Its "quantization"
rounds weights to 8 bits. What a real tool would take silently, it refuses: other shapes, types,
byte orders, and pictures whose bytes are in the other layout.
"""
