"""ViTGAN [lee2022vitgan]: an image in one network call, by a transformer trained against a transformer.

Its networks are in `fewstep.nets.vitgan` and `fewstep.nets.lipschitz`, its training in `fewstep.train.adversarial`.
Here are its ablations, and the bound on attention that it is built on.
"""
