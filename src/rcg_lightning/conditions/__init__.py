"""Sources of conditions: each is observed on real images in training and sampled for generation.

They are a layer above the stages because the prior of a representation is a trained generator.
"""
