"""Post-training quantisation that keeps what the network knows of the time [huang2024tfmq].

A plan calls the network at finitely many times, so that the layers which see nothing but the time are quantised for
exactly these (`temporal`), and the ranges of activations are those of each call (`ranges`). The blocks are then
reconstructed one after the other from the plan's own trajectories (`reconstruct`), in one pass through the network.
"""
