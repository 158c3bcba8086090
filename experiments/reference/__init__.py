"""What our code computes for each kind of reference fixture, one file a kind.

`voxel_network` is what classification and segmentation have in common.
"""
