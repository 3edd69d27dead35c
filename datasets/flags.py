"""Flags of single rows of a stream: bits of a uint8."""

STALE = 1  # older than the tick it belongs to: the device had nothing new
INTERPOLATED = 2  # computed from its neighbours; our recorders and imports make no such rows
AFTER_DROP = 4  # rows were lost just before this one
INVALID = 8  # the device itself doubts the value
INTERVENTION = 16  # a human overrode the policy
LIMITED = 32  # of an action: the safety filter changed what was asked for
HELD = (
    64  # of an action: the safety filter slowed down to rest, or stood still, instead of what was asked for
)
DIRECTED = 128  # neither policy nor person moved the robot, but a director, such as on its way to a new try
