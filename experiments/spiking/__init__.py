"""How spiking 3D networks learn: experiments on E-3DSNN."""
