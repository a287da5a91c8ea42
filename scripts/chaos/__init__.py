"""The crash matrix: real runs with injected faults, compared with an undisturbed one."""
