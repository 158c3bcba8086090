"""What our code computes for each kind of reference fixture, one file a kind."""
