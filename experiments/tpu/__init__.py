"""Programs for TPUs, compiled ahead of time on a machine without one."""
