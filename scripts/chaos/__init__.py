"""The crash matrix: real runs, killed and damaged, against an undisturbed one."""
