"""Which images were generated, and by what: local intrinsic dimensionality unfolded [lorenz2023multilid].

An image is described by how its distances to real images grow from the nearest to the k-th, in several layers of a
network [lorenz2022unfolding]; a simple classifier distinguishes descriptions of real and generated images. `taps` are
the layers, `features` the description, `protocol` says which images stand on which side, without the leak of the
published one, and `detect` measures how well a classifier does.
"""
