"""The official raw label ids of SemanticKITTI that occur in the street."""

from enum import IntEnum


class RawLabel(IntEnum):
    """Raw ids as they stand in the lower 16 bits of a `.label` file."""

    CAR = 10
    TRUCK = 18
    PERSON = 30
    ROAD = 40
    SIDEWALK = 48
    BUILDING = 50
    FENCE = 51
    VEGETATION = 70
    TRUNK = 71
    TERRAIN = 72
    POLE = 80
    TRAFFIC_SIGN = 81
    MOVING_CAR = 252
    MOVING_PERSON = 254
    MOVING_TRUCK = 258


AT_REST = {
    RawLabel.MOVING_CAR: RawLabel.CAR,
    RawLabel.MOVING_PERSON: RawLabel.PERSON,
    RawLabel.MOVING_TRUCK: RawLabel.TRUCK,
}
"""The class of each moving class when motion is not told apart."""

MOVING = {at_rest: moving for moving, at_rest in AT_REST.items()}
"""The moving class of each class that can move."""

KITTI_TYPES = {
    RawLabel.CAR: "Car",
    RawLabel.TRUCK: "Truck",
    RawLabel.PERSON: "Pedestrian",
}
"""The type in a KITTI label file of each class that has boxes."""
