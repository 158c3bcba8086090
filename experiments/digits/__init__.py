"""The experiments of the SVCCA papers on dense and convolutional networks."""
