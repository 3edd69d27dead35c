"""The device side of each protocol, for running real drivers without the silicon."""
