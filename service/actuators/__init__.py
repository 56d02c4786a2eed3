"""Actuators: the only room that writes to the mesh. One file, one actuator; they carry out and never judge."""
