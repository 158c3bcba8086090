"""What tests look for in lowered programs."""

import re


def has_float_scatter_add(program: str) -> bool:
    """Whether a program adds floats to rows in an order that a GPU chooses."""
    bodies = re.findall(r'"stablehlo.scatter".*?stablehlo.return', program, re.DOTALL)
    return any(re.search(r"stablehlo.add .*: tensor<f32>", body) for body in bodies)
