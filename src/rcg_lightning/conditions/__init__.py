"""Where conditions come from: each is observed on real images in training and sampled for generation.

They stand above the stages because a representation prior *is* a trained generator of representations.
"""
